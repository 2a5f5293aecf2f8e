# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's own detectors, unchanged, with and without `fastdet.override_torchvision()`.

The weights are random, so the score threshold is set so that as many candidates reach NMS as with a
trained model.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

import fastdet
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.torchvision_detectors import FEW_PROPOSALS, let_candidates_pass
from benchmarks.workloads import random_boxes, seeded

MODELS: dict[str, Callable[..., nn.Module]] = {
    "Faster R-CNN, MobileNetV3-Large FPN": detection.fasterrcnn_mobilenet_v3_large_fpn,
    "Faster R-CNN, ResNet-50 FPN": detection.fasterrcnn_resnet50_fpn,
    "RetinaNet, ResNet-50 FPN": detection.retinanet_resnet50_fpn,
}
GT_BOXES = 10


def model(name: str, beside: Beside) -> tuple[Any, list[Tensor], list[dict[str, Tensor]]]:
    """A model, and two images of coarse noise with boxes on them."""
    torch.manual_seed(0)
    height, width = (64, 96) if beside.run.quick else (800, 1216)
    numbers = {"min_size": height, "max_size": width}
    if beside.run.quick and name.startswith("Faster R-CNN"):
        numbers |= FEW_PROPOSALS
    network = MODELS[name](weights=None, weights_backbone=None, **numbers)
    coarse = torch.rand(2, 3, height // 32, width // 32, generator=seeded(15))
    images = list(nn.functional.interpolate(coarse, (height, width), mode="bilinear"))
    labels = torch.randint(1, 91, (GT_BOXES,), generator=seeded(16))
    boxes = random_boxes(2 * GT_BOXES, 0.6 * width, 0.6 * height, 0.3 * width)
    targets = [{"boxes": b, "labels": labels} for b in boxes.split(GT_BOXES)]
    return network, images, targets


def case(workload: str, run: Callable[[], Any]) -> Case:
    """The run, with the override and without."""

    def overridden() -> Any:
        with fastdet.override_torchvision():
            return run()

    return Case(
        op="override_torchvision",
        workload=workload,
        sides={"fastdet": overridden, "torchvision": run},
    )


@pytest.mark.parametrize("name", MODELS)
def bench_inference(beside: Beside, name: str) -> None:
    beside.skip_if_short()
    network, images, _ = model(name, beside)
    network.eval()
    with torch.no_grad():
        let_candidates_pass(network, images[0])
        beside(case(f"{name}, inference, one image", lambda: network(images[:1])))


@pytest.mark.parametrize("name", list(MODELS)[:1])
def bench_training_step(beside: Beside, name: str) -> None:
    beside.skip_if_short()
    network, images, targets = model(name, beside)

    def step() -> None:
        network.zero_grad()
        torch.stack(list(network(images, targets).values())).sum().backward()

    beside(case(f"{name}, training step, two images", step))
