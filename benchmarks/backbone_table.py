# SPDX-License-Identifier: BSD-3-Clause
"""Which families of timm's models work as backbones: one small model of each, with random weights.

    python -m benchmarks.backbone_table

Each model runs in a process of its own on one thread: an image of 333 x 500, one training step with
three of five parts trained, and torch.export. The result file is written after each model, and a
run continues where the last one stopped; delete the file to begin anew. It takes about an hour.
Then it writes the table of docs/backbones.md.
"""

import json
import os
import resource
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.machine import describe, peak_memory_mib
from benchmarks.readme_tables import filled
from benchmarks.results import BACKBONES
from fastdet.files import replacing
from fastdet.models import Border
from fastdet.models.backbones import BackboneWithFPN, timm_pyramid
from fastdet.models.necks import LastLevelMaxPool
from fastdet.models.timm_bodies import fit_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "backbones.md"
IMAGE = (333, 500)  # height and width: no multiples of anything
FIXED_SIZE = (352, 512)  # the same image, padded
TRAINED = 3  # of five parts
LIMIT_S = 900
LIMIT_BYTES = 4 << 30

# The smallest model of each of timm's modules, without its models for tests.
NAMES = """
beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny
convmixer_768_32 convnext_zepto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s
cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 mobilenetv2_035 efficientvim_m1
efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0
hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2
inception_v3 inception_v4 lcnetv2_small levit_128 lowformer_b0 mambaout_femto maxvit_pico_rw_256
poolformerv2_s12 gmlp_ti16_224 lcnet_035 mobilenetv5_base mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_parfac_gap nasnetalarge nest_base nextvit_small nf_regnet_b0 pit_b_224
pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1
res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m
twins_svt_small vgg11 visformer_small vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
vit_srelpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224
ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
"""
MODELS = NAMES.split()


def main() -> None:
    """Runs the models that the result file lacks, then writes the page."""
    result: dict[str, Any] = {"machine": describe(), "models": {}}
    if BACKBONES.exists():
        result["models"] = json.loads(BACKBONES.read_text())["models"]
    missing = [name for name in MODELS if name not in result["models"]]
    for i, name in enumerate(missing, start=1):
        result["models"][name] = in_a_process(name)
        result["models"] = dict(sorted(result["models"].items()))
        with replacing(BACKBONES) as file:
            file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{i}/{len(missing)} {name}: {result['models'][name]}", flush=True)
    with replacing(PAGE) as file:
        file.write_text(filled(PAGE.read_text()))


def in_a_process(name: str) -> dict[str, Any]:
    """`checks` in a child process: a crash, too much memory or too long a time is a result."""
    answer, question = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        with os.fdopen(question, "w") as pipe:
            checks(name, pipe)
        os._exit(0)
    os.close(question)
    with os.fdopen(answer) as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    found: dict[str, Any] = {"family": family(name)}
    for line in lines:
        found |= json.loads(line)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        took_too_long = f"more than {LIMIT_S} s of the processor"
        found["error"] = took_too_long if number == signal.SIGKILL else f"signal {number}"
    return found


def checks(name: str, pipe: Any) -> None:
    """Writes a line of JSON for each step that passed, and one for an error."""

    def passed(**facts: Any) -> None:
        pipe.write(json.dumps(facts) + "\n")
        pipe.flush()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = "built"
    try:
        backbone, way = build(name)
        passed(way=way, parameters=sum(p.numel() for p in backbone.body.parameters()))
        images = Border(fixed_size=IMAGE).pad([torch.rand(3, *IMAGE)], num_classes=2).images
        step = "runs"
        with torch.no_grad():
            shapes = [tuple(x.shape) for x in backbone.eval()(images)]
        passed(runs=shapes[0][-2:] == (FIXED_SIZE[0] // 4, FIXED_SIZE[1] // 4))
        step = "trains"
        # Two images: some models have a BatchNorm on maps of one pixel.
        passed(**train(backbone, torch.cat([images, images])))
        step = "exports"
        passed(exports=exports(backbone, images))
    except Exception as error:
        passed(error=f"{step}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    passed(peak_mib=round(peak_memory_mib()), seconds=round(time.process_time()))


def build(name: str) -> tuple[BackboneWithFPN, str]:
    """The model with a small pyramid, and how it was built, in words."""
    options: dict[str, Any] = {"fpn_channels": 32, "trainable_backbone_layers": TRAINED}
    try:
        backbone = timm_pyramid(name, lambda _: LastLevelMaxPool(), **options)
        way = fit_of(name).way
    except ValueError as error:
        if "give fixed_size" not in str(error):
            raise
        options["image_size"] = FIXED_SIZE
        backbone = timm_pyramid(name, lambda _: LastLevelMaxPool(), **options)
        way = fit_of(name, FIXED_SIZE).way
    words = ["simple pyramid"] if way.plain_vit else []
    if "patch_size" in way.options:
        words.append(f"patches of {way.options['patch_size']}")
    if "img_size" in way.options:
        words.append("fixed size")
    elif way.divisor is not None and way.divisor != 32:
        words.append(f"padded to {way.divisor}")
    return backbone, ", ".join(words) or "any size"


def train(backbone: BackboneWithFPN, images: torch.Tensor) -> dict[str, bool]:
    """One backward: every trained parameter gets a finite gradient, and no frozen one gets any."""
    torch.stack([x.square().mean() for x in backbone.train()(images)]).sum().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    frozen = [p for p in backbone.body.parameters() if not p.requires_grad]
    return {
        "trains": all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained),
        "freezes": bool(frozen) and all(p.grad is None for p in frozen),
    }


def exports(backbone: BackboneWithFPN, images: torch.Tensor) -> bool:
    """Whether the exported program gives the same maps."""
    backbone.eval().requires_grad_(False)
    program = torch.export.export(backbone, (images,), strict=False)
    with torch.no_grad():
        expected, found = backbone(images), program.module()(images)
    return all(
        torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(x.abs().max()))
        for x, y in zip(expected, found, strict=True)
    )


def family(name: str) -> str:
    """The module of timm that has the model."""
    return timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
