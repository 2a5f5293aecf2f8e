# SPDX-License-Identifier: BSD-3-Clause
"""End to end: our detectors and torchvision's with the same weights, on the same two images.

ResNet-50 with a feature pyramid, random weights, 800 x 1216 pixels; float32 with torch's default of
TF32 in convolutions alone, and bfloat16 autocast. Both sides take a list of images, as a user
passes it, and return the losses' gradients or a list of detections. torchvision runs in its own
layout, and as a second peer in channels_last, which is ours.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.alternate import Rounds, Side
from benchmarks.gpu.case import GpuCase
from benchmarks.gpu.device import Device
from benchmarks.torchvision_detectors import (
    FEW_PROPOSALS,
    let_candidates_pass,
    resnet_faster_rcnn,
    resnet_retinanet,
)
from benchmarks.workloads import random_boxes, seeded
from fastdet.models import MODELS, FasterRCNN

FAMILIES: dict[str, tuple[str, Callable[..., Any]]] = {
    "Faster R-CNN": ("faster_rcnn", resnet_faster_rcnn),
    "RetinaNet": ("retinanet", resnet_retinanet),
}
GT_BOXES = 10
ROUNDS = Rounds(seconds=2.0, least=5, most=40)

Images = list[Tensor]
Targets = list[dict[str, Tensor]]


def scene(device: Device) -> tuple[Images, Targets]:
    """Two images of coarse noise with boxes on them."""
    height, width = (64, 96) if device.small else (800, 1216)
    coarse = torch.rand(2, 3, height // 32, width // 32, generator=seeded(15))
    images = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    labels = torch.randint(1, 91, (GT_BOXES,), generator=seeded(16)).to(device.name)
    boxes = random_boxes(2 * GT_BOXES, 0.6 * width, 0.6 * height, 0.3 * width).to(device.name)
    targets = [{"boxes": b, "labels": labels} for b in boxes.split(GT_BOXES)]
    return list(images.to(device.name)), targets


def models(family: str, device: Device, images: Images) -> dict[str, Any]:
    """Ours and torchvision's, of the same weights and of the same score threshold."""
    name, make = FAMILIES[family]
    height, width = images[0].shape[1:]
    numbers = {"min_size": height, "max_size": width}
    if device.small and family == "Faster R-CNN":
        numbers |= FEW_PROPOSALS
    backbone = "resnet18" if device.small else "resnet50"
    torch.manual_seed(0)
    theirs = make(backbone, norms=nn.BatchNorm2d, **numbers)
    ours = MODELS[name](backbone, 91, **numbers)
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.to(device.name).eval(), theirs.to(device.name).eval()
    with torch.no_grad():
        threshold = let_candidates_pass(theirs, images[0])
    owner: Any = ours.roi_heads if isinstance(ours, FasterRCNN) else ours
    owner.score_thresh = threshold
    in_our_layout = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    return {"fastdet": ours, "torchvision": theirs, "torchvision channels_last": in_our_layout}


def inference(model: Any, images: Images) -> Side:
    def run() -> Any:
        model.eval()
        with torch.no_grad():
            return model(images)

    return run


def training_step(model: Any, images: Images, targets: Targets) -> Side:
    """Losses, gradients and an update of rate 0, so that each step has the same to do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def run() -> Any:
        model.train()
        optimizer.zero_grad()
        loss = torch.stack(list(model(images, targets).values())).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def in_bfloat16(side: Side, device: Device) -> Side:
    def run() -> Any:
        with torch.autocast(device.name, torch.bfloat16):
            return side()

    return run


def detectors(device: Device) -> Iterator[GpuCase]:
    images, targets = scene(device)
    for family in FAMILIES:
        sides = models(family, device, images)
        steps: dict[str, Callable[[Any], Side]] = {
            "inference": lambda model: inference(model, images),
            "training step": lambda model: training_step(model, images, targets),
        }
        for step, prepare in steps.items():
            for dtype in ("float32", "bfloat16"):
                runs = {name: prepare(model) for name, model in sides.items()}
                if dtype == "bfloat16":
                    runs = {name: in_bfloat16(run, device) for name, run in runs.items()}
                yield GpuCase(
                    op=f"{family}, ResNet-50 FPN",
                    workload=f"{step}, two images, {dtype}",
                    inputs=(),
                    sides={name: lambda run=run: run for name, run in runs.items()},
                    target=None,
                    rounds=None if device.small else ROUNDS,
                )
