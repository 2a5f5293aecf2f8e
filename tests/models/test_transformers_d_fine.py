# SPDX-License-Identifier: BSD-3-Clause
"""D-FINE of transformers, converted: same weights, same detections, same losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.engine.fused import has_form, unfused
from fastdet.models import DFINE, Border, from_transformers, replace_classes
from fastdet.models.transformers_d_fine import d_fine_from_transformers

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

HEIGHT, WIDTH, CLASSES = 64, 96, 3
BORDER = Border(fixed_size=(HEIGHT, WIDTH), image_mean=(0, 0, 0), image_std=(1, 1, 1))
KINDS = ("light", "wider levels", "two levels", "discrete")
SMALL: dict[str, Any] = {
    "num_labels": CLASSES,
    "encoder_in_channels": [24, 32, 40],
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_in_channels": [16, 16, 16],
    "d_model": 16,
    "decoder_ffn_dim": 20,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_n_points": [3, 6, 3],
    "num_queries": 30,
    "hidden_expansion": 0.5,
    "depth_mult": 0.34,
    "lqe_hidden_dim": 8,
}
TWO_LEVELS: dict[str, Any] = {
    "encoder_in_channels": [32, 40],
    "decoder_in_channels": [16, 16],
    "feat_strides": [16, 32],
    "encode_proj_layers": [1],
    "num_feature_levels": 2,
    "decoder_n_points": 2,
}


def config_of(kind: str = "light", **further: Any) -> Any:
    light = kind == "light"
    levels = 2 if kind == "two levels" else 3
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 24, 32],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 24, 32, 40],
        hidden_sizes=[16, 24, 32, 40],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[1, 2, 1, 1],
        use_learnable_affine_block=light,
        out_features=["stage2", "stage3", "stage4"][-levels:],
    )
    options = SMALL | {"backbone_config": backbone, "freeze_backbone_batch_norms": not light}
    if kind == "wider levels":
        options |= {"encoder_hidden_dim": 24, "decoder_in_channels": [24, 24, 24]}
        options |= {"encoder_layers": 2, "depth_mult": 0.67, "reg_scale": 8.0, "max_num_bins": 16}
    options |= TWO_LEVELS if kind == "two levels" else {}
    options |= {"decoder_method": "discrete"} if kind == "discrete" else {}
    return transformers.DFineConfig(**(options | further))


@torch.no_grad()
def theirs_of(kind: str = "light", **further: Any) -> Any:
    """A model whose weights and statistics are random enough to be told apart."""
    torch.manual_seed(0)
    model = transformers.DFineForObjectDetection(config_of(kind, **further))
    computed = ("num_points_scale", "decoder.up", "decoder.reg_scale")
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if key.endswith(computed) or not tensor.is_floating_point():
            continue
        if key.endswith(("running_var", "norm.weight", "normalization.weight", "lab.scale")):
            tensor.uniform_(0.8, 1.2)
        elif tensor.dim() == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape))
        else:
            tensor.add_(torch.randn(tensor.shape) / tensor[0].numel() ** 0.5)
    return model.eval()


def images() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def processed(outputs: Any) -> list[dict[str, Tensor]]:
    processor = transformers.RTDetrImageProcessor()
    sizes = [(HEIGHT, WIDTH)] * 2
    return processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_detections(kind: str) -> None:
    theirs = theirs_of(kind)
    ours = d_fine_from_transformers(theirs, BORDER)
    assert ours.num_classes == CLASSES + 1
    assert not ours.training
    with torch.no_grad():
        expected = processed(theirs(pixel_values=images()))
        found = ours(list(images()))
        assert has_form(ours.backbone)
        with unfused():
            alone = ours(list(images()))
    for of_image, unfused_ones, wanted in zip(found, alone, expected, strict=True):
        limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
        boxes = wanted["boxes"].clamp(min=0).minimum(limit)
        assert len(of_image["boxes"]) == SMALL["num_queries"]
        for result in (of_image, unfused_ones):
            torch.testing.assert_close(result["scores"], wanted["scores"], rtol=0, atol=1e-5)
            torch.testing.assert_close(result["boxes"], boxes, rtol=0, atol=1e-3)
            assert torch.equal(result["labels"], wanted["labels"] + 1)
        assert wanted["scores"].std() > 1e-3
        assert boxes.std(dim=0).min() > 1
