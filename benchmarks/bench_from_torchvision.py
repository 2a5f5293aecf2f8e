# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's detectors beside what `from_torchvision` makes of them, from images to detections.

In inference the ONNX file of ours runs in ONNX Runtime and in OpenVINO, where they are installed.
In 8-bit integers torchvision has no detector: ours is beside our own bfloat16, and beside
OpenVINO's integers where nncf is installed.

The networks are those of torchvision's checkpoints (frozen norms), with random weights; the score
threshold is set so that as many candidates reach NMS as with a trained model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import onnx_runtimes
from benchmarks.alternate import Side
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.torchvision_detectors import (
    FEW_PROPOSALS,
    let_candidates_pass,
    resnet_faster_rcnn,
    resnet_retinanet,
)
from benchmarks.workloads import random_boxes, seeded
from fastdet.engine import quantize
from fastdet.models import from_torchvision
from fastdet.ops import box_iou

GT_BOXES = 10
BF16 = "bfloat16 autocast"
SPREAD = 50  # of the class logits in 8-bit integers
INT8_TARGET = 1.65  # times as fast as bfloat16


# With the target ratios: inference, inference in bfloat16 on both sides, training.
MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[float, float, float]]] = {
    "Faster R-CNN, ResNet-50 FPN": (resnet_faster_rcnn, (1.4, 1.2, 1.3)),
    "RetinaNet, ResNet-50 FPN": (resnet_retinanet, (1.5, 1.2, 1.3)),
}


def made(name: str, height: int, width: int) -> tuple[Any, list[Tensor]]:
    """torchvision's model, and two images of coarse noise, which it does not resize.

    Images of 64 pixels, in quick runs and tests, get a ResNet-18 and few proposals.
    """
    torch.manual_seed(0)
    numbers = {"min_size": min(height, width), "max_size": max(height, width)}
    if height <= 64 and MODELS[name][0] is resnet_faster_rcnn:
        numbers |= FEW_PROPOSALS
    network = MODELS[name][0]("resnet50" if height > 64 else "resnet18", **numbers)
    for part in network.modules():
        if isinstance(part, nn.Conv2d) and part.out_channels == 4 * part.in_channels:
            part.weight.data /= 4  # the last of a residual branch: trained ones add little
    coarse = torch.rand(2, 3, height // 32, width // 32, generator=seeded(15))
    return network, list(nn.functional.interpolate(coarse, (height, width), mode="bilinear"))


def spread_scores(network: Any) -> None:
    """Makes the logits differ more: else a rounding moves all scores across the threshold."""
    one_stage = hasattr(network, "head")
    heads = network.head.classification_head if one_stage else network.roi_heads.box_predictor
    (heads.cls_logits if one_stage else heads.cls_score).weight.data *= SPREAD


def targets_for(images: list[Tensor]) -> list[dict[str, Tensor]]:
    """GT_BOXES boxes and labels for each of two square images."""
    side = images[0].shape[1]
    labels = torch.randint(1, 91, (GT_BOXES,), generator=seeded(16))
    boxes = random_boxes(2 * GT_BOXES, 0.6 * side, 0.6 * side, 0.3 * side)
    return [{"boxes": b, "labels": labels} for b in boxes.split(GT_BOXES)]


def training_step(model: Any, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    """Forward and backward; the weights stay."""
    model.zero_grad()
    torch.stack(list(model(images, targets).values())).sum().backward()


def expect_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same detections, except a few that rounding moves across a threshold."""
    assert abs(len(ours["boxes"]) - len(theirs["boxes"])) <= 2
    found = box_iou(theirs["boxes"], ours["boxes"]) > 0.99
    again = (found & (theirs["labels"][:, None] == ours["labels"])).any(1)
    assert len(again) > 0
    assert again.float().mean() > 0.95


def in_bfloat16(model: Any, images: list[Tensor]) -> Callable[[], Any]:
    """The model on images, with its floating layers in bfloat16."""
    return lambda: torch.autocast("cpu", torch.bfloat16)(model)(images)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def bench_inference(beside: Beside, name: str, tmp_path: Path) -> None:
    beside.skip_if_short()
    network, images = made(name, *((64, 96) if beside.run.quick else (800, 1216)))
    network.eval()
    let_candidates_pass(network, images[0])
    ours = from_torchvision(network)
    image = images[:1]
    theirs = network(image)[0]
    expect_same(ours(image)[0], theirs)
    runtimes = onnx_runtimes.installed()
    path = onnx_runtimes.export(ours, image[0], tmp_path) if runtimes else tmp_path
    others = {runtime: onnx_runtimes.side(runtime, path, image[0]) for runtime in runtimes}
    for side in others.values():
        expect_same(side()[0], theirs)

    promised = MODELS[name][1]
    beside(
        Case(
            op="from_torchvision",
            workload=f"{name}, inference, one image",
            sides={
                "fastdet": lambda: ours(image),
                "torchvision": lambda: network(image),
                **others,
            },
            target=promised[0],
        )
    )
    others = {
        f"{runtime}, bfloat16": onnx_runtimes.side(runtime, path, image[0], bfloat16=True)
        for runtime in runtimes
        if runtime == onnx_runtimes.OPENVINO
    }
    beside(
        Case(
            op="from_torchvision",
            workload=f"{name}, inference, one image, {BF16}",
            sides={
                "fastdet": in_bfloat16(ours, image),
                "torchvision": in_bfloat16(network, image),
                "torchvision, float32": lambda: network(image),
                **others,
            },
            target=promised[1],
        )
    )


def sides_in_integers(name: str, height: int, width: int, folder: Path) -> dict[str, Side]:
    """Ours in 8-bit integers and in bfloat16, and what nncf makes for OpenVINO."""
    network, images = made(name, height, width)
    network.eval()
    spread_scores(network)
    let_candidates_pass(network, images[0])
    ours = from_torchvision(network)
    sides = {
        "fastdet": in_bfloat16(quantize(ours, images), images[:1]),
        "fastdet, bfloat16": in_bfloat16(ours, images[:1]),
    }
    if onnx_runtimes.can_quantise():
        path = onnx_runtimes.in_int8(onnx_runtimes.export(ours, images[0], folder), images)
        openvino = onnx_runtimes.side(onnx_runtimes.OPENVINO, path, images[0], bfloat16=True)
        sides["OpenVINO, 8-bit integers"] = openvino
    return sides


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def bench_inference_in_integers(beside: Beside, name: str, tmp_path: Path) -> None:
    beside.skip_if_short()
    size = (64, 96) if beside.run.quick else (800, 1216)
    sides = sides_in_integers(name, *size, tmp_path)
    for side in sides.values():
        assert len(side()[0]["boxes"]) > 10
    beside(
        Case(
            op="from_torchvision",
            workload=f"{name}, inference, one image, 8-bit integers",
            sides=sides,
            target=INT8_TARGET,
        )
    )


@pytest.mark.parametrize("name", MODELS)
def bench_training_step(beside: Beside, name: str) -> None:
    beside.skip_if_short()
    side = 64 if beside.run.quick else 512
    network, images = made(name, side, side)
    targets = targets_for(images)
    ours = from_torchvision(network)
    beside(
        Case(
            op="from_torchvision",
            workload=f"{name}, training step, two images of 512 x 512",
            sides={
                "fastdet": lambda: training_step(ours, images, targets),
                "torchvision": lambda: training_step(network, images, targets),
            },
            target=MODELS[name][1][2],
        )
    )
