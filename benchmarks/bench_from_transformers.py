# SPDX-License-Identifier: BSD-3-Clause
"""DETRs of transformers beside what `from_transformers` makes of them, and under `override_detr()`.

Inference goes from an image to detections, a training step from two images to gradients. The
models are those of the published sizes, with random weights; images are 640 x 640 and have the
right size already. The sides take turns (`alternate.py`). Peak memory is that of a few calls in a
process of its own, beyond what the model takes. Free memory of the heap goes back to the system
before it: what a conversion freed is no memory of the model. One process differs from another by
some tens of MiB, so the peak is the median of three; the sides take turns here, too.

    python -m benchmarks.bench_from_transformers --out benchmarks/results/from_transformers.json
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdet
from benchmarks import bench_override_detr, machine
from benchmarks.alternate import Rounds, alternate, keep_freed_memory
from benchmarks.bench_from_torchvision import expect_same, targets_for, training_step
from benchmarks.case import ratio
from benchmarks.workloads import seeded
from fastdet.files import replacing
from fastdet.models import from_transformers
from fastdet.models.relative_boxes import relative_boxes

CLASSES = bench_override_detr.CLASSES
STEPS = ("inference", "training step")
SIDES = ("fastdet", "transformers", "transformers, override_detr")
FULL = Rounds(seconds=60.0, least=3, most=15)
QUICK = Rounds(seconds=0.0, least=1, most=1)
CALLS_FOR_MEMORY = 2
PROCESSES_FOR_MEMORY = 3  # of each side


def rt_detr(small: bool) -> Any:
    """The published RT-DETR with ResNet-18 or ResNet-50."""
    transformers: Any = importlib.import_module("transformers")
    backbone = transformers.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])
    options: dict[str, Any] = {}
    if small:
        backbone = transformers.RTDetrResNetConfig(
            layer_type="basic",
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            out_features=["stage2", "stage3", "stage4"],
        )
        options = {"hidden_expansion": 0.5, "decoder_layers": 3}
    config = transformers.RTDetrConfig(backbone_config=backbone, num_labels=CLASSES, **options)
    return transformers.RTDetrForObjectDetection(config)


def d_fine_s() -> Any:
    """The published D-FINE-S, with HGNetV2-B0."""
    transformers: Any = importlib.import_module("transformers")
    channels = [64, 256, 512, 1024]
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, *channels[:3]],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=channels,
        hidden_sizes=channels,
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        use_learnable_affine_block=True,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=channels[1:],
        hidden_expansion=0.5,
        depth_mult=0.34,
        decoder_layers=3,
        decoder_n_points=[3, 6, 3],
        num_labels=CLASSES,
    )
    return transformers.DFineForObjectDetection(config)


# Of the goals: inference and training step as ratios of times, then peak memory.
MODELS: dict[str, Callable[[], Any]] = {
    "RT-DETR, ResNet-18": lambda: rt_detr(small=True),
    "RT-DETR, ResNet-50": lambda: rt_detr(small=False),
    "Deformable DETR": bench_override_detr.deformable_detr,
    "D-FINE-S": d_fine_s,
}
GOALS = {"inference": 1.8, "training step": 1.5, "memory": 0.8}


def theirs_of(name: str) -> Any:
    """transformers' model, with weights and norms that pass on what they get.

    Of its own random weights some are near 0: then all queries are the same.
    """
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def ours_of(theirs: Any, side: int) -> Any:
    """Our model."""
    transformers: Any = importlib.import_module("transformers")
    size = {"height": side, "width": side}
    processor = transformers.RTDetrImageProcessor(size=size, do_normalize=False)
    return from_transformers(theirs, processor)


def runs(theirs: Any, ours: Any, step: str, side: int) -> dict[str, Callable[[], Any]]:
    """What each side runs, by the side's name; one of the two models may be absent."""
    classes = theirs.config.num_labels if ours is None else ours.num_classes - 1
    images = torch.rand(2, 3, side // 32, side // 32, generator=seeded(19))
    images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear")
    for model in (theirs, ours):
        if model is not None:
            model.train(step != "inference")
    if step == "inference":
        return _inference(theirs, ours, images[:1])
    targets = targets_for(list(images))
    for target in targets:
        target["labels"] = target["labels"] % classes + 1
    size = torch.tensor([[side, side]])
    given = [
        {"class_labels": t["labels"] - 1, "boxes": relative_boxes(t["boxes"][None], size)[0]}
        for t in targets
    ]

    def step_of_theirs() -> None:
        theirs.zero_grad()
        theirs(pixel_values=images, labels=given).loss.backward()

    return _with_override(
        step_of_theirs, ours and (lambda: training_step(ours, list(images), targets))
    )


def _inference(theirs: Any, ours: Any, image: Tensor) -> dict[str, Callable[[], Any]]:
    transformers: Any = importlib.import_module("transformers")
    processor = transformers.RTDetrImageProcessor()
    sizes = [tuple(image.shape[2:])]

    @torch.no_grad()
    def detections_of_theirs() -> Any:
        outputs = theirs(pixel_values=image)
        return processor.post_process_object_detection(outputs, threshold=0, target_sizes=sizes)

    @torch.no_grad()
    def detections_of_ours() -> Any:
        return ours(list(image))

    return _with_override(detections_of_theirs, ours and detections_of_ours)


def _with_override(
    theirs: Callable[[], Any], ours: Callable[[], Any] | None
) -> dict[str, Callable[[], Any]]:
    def overridden() -> Any:
        with fastdet.override_detr():
            return theirs()

    sides = dict(zip(SIDES, (ours, theirs, overridden), strict=True))
    return {name: run for name, run in sides.items() if run is not None}


def measured(name: str, step: str, side: int, rounds: Rounds) -> dict[str, Any]:
    """Medians of each side, and quartiles of the ratio to the first side's time."""
    theirs = theirs_of(name)
    ours = ours_of(theirs, side)
    sides = runs(theirs, ours, step, side)
    first = {key: run() for key, run in sides.items()}
    if step == "inference":
        found, expected = first["fastdet"][0], first["transformers"][0]
        # All queries of theirs, best first; ours are at most detections_per_img, and clipped.
        expected = {key: x[: ours.detections_per_img] for key, x in expected.items()}
        clipped = expected["boxes"].clamp(0, side)
        expect_same({**found, "labels": found["labels"] - 1}, {**expected, "boxes": clipped})
    seconds = {key: turns.per_call() for key, turns in alternate(sides, rounds).items()}
    return {
        key: {"ms": 1e3 * statistics.median(of_side), "ratio": ratio(of_side, seconds["fastdet"])}
        for key, of_side in seconds.items()
    }


def peaks_mib(name: str, step: str, side: int, processes: int) -> dict[str, list[float]]:
    """The peak of each process, by the side's name; the sides take turns."""
    peaks: dict[str, list[float]] = {key: [] for key in SIDES}
    for _ in range(processes):
        for key, of_side in peaks.items():
            of_side.append(memory_mib(name, step, key, side))
    return peaks


def memory_mib(name: str, step: str, key: str, side: int) -> float:
    """Peak of resident memory of some calls of one side, beyond the model's, in another process."""
    command = [sys.executable, "-m", "benchmarks.bench_from_transformers", "--size", str(side)]
    command += ["--measure", name, step, key]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure_memory(name: str, step: str, key: str, side: int) -> float:
    """What `memory_mib` runs in the other process."""
    theirs = theirs_of(name)
    if key == "fastdet":
        ours = ours_of(theirs, side)
        run = runs(torch.nn.Module(), ours, step, side)[key]
        del theirs
    else:
        run = runs(theirs, None, step, side)[key]
    before = machine.new_peak_memory_mib()
    for _ in range(CALLS_FOR_MEMORY):
        run()
    return max(0.0, machine.peak_memory_mib() - before)


def show(result: dict[str, Any]) -> None:
    """Prints a line for each model and step."""
    for name, steps in result["models"].items():
        for step, sides in steps.items():
            parts = [
                f"{key} {of_side['ms']:.0f} ms (x{of_side['ratio'][1]:.2f}), "
                f"{of_side['peak_mib']:.0f} MiB"
                for key, of_side in sides.items()
            ]
            print(f"{name}, {step}: {'; '.join(parts)}", flush=True)


def main() -> None:
    """Measures all models; writes the result file after each step of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=640, help="side of the images")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--quick", action="store_true", help="each side once: does it run at all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, step, key = options.measure
        print(measure_memory(name, step, key, options.size))
        return
    keep_freed_memory()
    result: dict[str, Any] = {"machine": machine.describe(), "size": options.size, "models": {}}
    for name in options.models:
        steps = result["models"].setdefault(name, {})
        for step in STEPS:
            steps[step] = measured(name, step, options.size, QUICK if options.quick else FULL)
            processes = 1 if options.quick else PROCESSES_FOR_MEMORY
            for key, peaks in peaks_mib(name, step, options.size, processes).items():
                steps[step][key]["peak_mib"] = statistics.median(peaks)
                steps[step][key]["peaks_mib"] = peaks
            if options.out:
                with replacing(options.out) as temporary:
                    temporary.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
