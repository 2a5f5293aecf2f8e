# SPDX-License-Identifier: BSD-3-Clause
"""Parameters, FLOPs and anchors compared with numbers counted by hand."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fastdet.engine import quantize
from fastdet.models import describe, faster_rcnn, fcos, from_torchvision, retinanet

from .scenes import small_model

# Multiply-adds of ResNet-18's convolutions at 224 px: stem, layer1, then three equal stages.
RESNET18_MACS = 64 * 3 * 49 * 112**2 + 4 * 64 * 64 * 9 * 56**2 + 3 * 411_041_792
RESNET18_PARAMETERS = 11_689_512 - 513_000  # the published number without the classifier


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """The number of parameters of a convolution with bias."""
    return (inputs * kernel**2 + 1) * outputs


def test_faster_rcnn_by_hand() -> None:
    model = faster_rcnn("resnet18", 4, fpn_channels=16, rpn_post_nms_top_n_test=50)
    found = describe(model, (224, 224))
    assert found.image_size == (224, 224)
    assert [level.stride for level in found.levels] == [(s, s) for s in (4, 8, 16, 32, 56)]
    grids = [56, 28, 14, 7, 4]
    assert [level.grid for level in found.levels] == [(side, side) for side in grids]
    assert found.levels[1].sizes == ((90, 46), (64, 64), (46, 90))
    cells = sum(side**2 for side in grids)
    assert found.anchors == 3 * cells

    channels = (64, 128, 256, 512)
    lateral = sum(16 * c * side**2 for c, side in zip(channels, grids, strict=False))
    macs = {
        "backbone.body": RESNET18_MACS,
        "backbone.fpn": lateral + 16 * 16 * 9 * (cells - 16),
        "rpn.head": (16 * 16 * 9 + 16 * 3 + 16 * 12) * cells,
        "roi_heads.box_head": 50 * (16 * 49 * 1024 + 1024 * 1024),
        "roi_heads.box_predictor": 50 * 1024 * (4 + 16),
    }
    assert {part.name: part.flops for part in found.parts} == {k: 2 * v for k, v in macs.items()}
    assert found.flops == 2 * sum(macs.values())
    parameters = [
        RESNET18_PARAMETERS,
        sum(conv(c, 16, 1) for c in channels) + 4 * conv(16, 16, 3),
        conv(16, 16, 3) + conv(16, 3, 1) + conv(16, 12, 1),
        conv(16 * 49, 1024, 1) + conv(1024, 1024, 1),
        conv(1024, 4, 1) + conv(1024, 16, 1),
    ]
    assert [part.parameters for part in found.parts] == parameters
    assert found.parameters == sum(parameters)


def test_the_heads_of_one_stage_by_hand() -> None:
    cells = 28**2 + 14**2 + 7**2 + 4**2 + 2**2
    tower = 4 * 16 * 16 * 9
    found = describe(retinanet("resnet18", 4, fpn_channels=16), (224, 224))
    assert [part.flops for part in found.parts[2:]] == [
        2 * cells * (tower + 16 * 9 * 9 * outputs) for outputs in (4, 4)
    ]
    assert found.anchors == 9 * cells
    found = describe(fcos("resnet18", 3, fpn_channels=16), (224, 224))
    assert [part.flops for part in found.parts[2:]] == [
        2 * cells * (tower + 16 * 9 * outputs) for outputs in (3, 4 + 1)
    ]
    assert found.anchors == cells
    assert [level.sizes for level in found.levels] == [((s, s),) for s in (8, 16, 32, 64, 128)]


def test_a_head_whose_layers_run_one_by_one() -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 49, 32), nn.ReLU())
    model = small_model(
        "faster_rcnn", box_head=head, representation_size=32, rpn_post_nms_top_n_test=10
    )
    part = describe(model, (96, 96)).parts[3]
    assert part.name == "roi_heads.box_head"
    assert part.flops == 2 * 10 * 16 * 49 * 32


def test_a_converted_model_whose_backbone_has_one_map() -> None:
    backbone: nn.Module = mobilenet_v2().features
    backbone.out_channels = 1280  # type: ignore[assignment]
    anchors = AnchorGenerator(sizes=((32, 64),), aspect_ratios=((1.0,),))
    theirs = TorchvisionFasterRCNN(backbone, num_classes=3, rpn_anchor_generator=anchors)
    found = describe(from_torchvision(theirs), (64, 96))
    assert [part.name for part in found.parts][:2] == ["backbone", "rpn.head"]
    assert found.parameters == sum(p.numel() for p in theirs.parameters())
    assert [level.sizes for level in found.levels] == [((32, 32), (64, 64))]
    assert found.anchors == 2 * 2 * 3


def test_printed() -> None:
    printed = str(describe(faster_rcnn("resnet18", 4, fpn_channels=16), (224, 256)))
    assert "FasterRCNN, one image of 224 x 256" in printed
    assert "backbone.body" in printed
    assert f"{RESNET18_PARAMETERS:,}" in printed
    assert "90x46 64x64 46x90" in printed
    assert "56x64" in printed


def test_an_image_without_pixels() -> None:
    with pytest.raises(ValueError, match=r"image_size: expected height and width above 0, got"):
        describe(small_model("fcos"), (0, 64))


def test_a_quantised_detector() -> None:
    model = small_model("retinanet").eval()
    small = quantize(model, [torch.rand(3, 64, 64)])
    with pytest.raises(ValueError, match="expected a detector in float32, got a quantised"):
        describe(small, (64, 64))
