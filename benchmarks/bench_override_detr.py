# SPDX-License-Identifier: BSD-3-Clause
"""DETRs of transformers, unchanged, with and without `fastdet.override_detr()`.

Each is the model of its default config, of the published size: 300 queries, and ResNet-50 in the
first two. The weights are random. Images are 640 x 640, as RT-DETR and D-FINE are published.

Deformable DETR attends deformably from every pixel of its encoder. RT-DETR and D-FINE do so only
from the queries of the decoder, a few percent of their time on a CPU; there is no goal for them.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdet
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.workloads import seeded

try:
    importlib.import_module("scipy")  # for transformers' matchers
    transformers: Any = importlib.import_module("transformers")
except ModuleNotFoundError as error:
    warnings.warn(f"{error}: override_detr is not measured", stacklevel=1)
    transformers = None

CLASSES, GT_BOXES = 80, 10


def deformable_detr() -> Any:
    """With a backbone of transformers, as the default one is loaded through timm."""
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, backbone=None, use_timm_backbone=False, num_labels=CLASSES
    )
    return transformers.DeformableDetrForObjectDetection(config)


def rt_detr() -> Any:
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(num_labels=CLASSES))


def d_fine() -> Any:
    return transformers.DFineForObjectDetection(transformers.DFineConfig(num_labels=CLASSES))


MODELS: dict[str, Callable[[], Any]] = {
    "Deformable DETR": deformable_detr,
    "RT-DETR": rt_detr,
    "D-FINE": d_fine,
}


def model(name: str, beside: Beside) -> tuple[Any, Tensor, list[dict[str, Tensor]]]:
    """A model, and images of noise with boxes on them."""
    if transformers is None:
        pytest.skip("transformers or SciPy is not installed")
    beside.skip_if_short()
    torch.manual_seed(0)
    side = 128 if beside.run.quick else 640  # 300 queries need as many locations
    labels = torch.randint(0, CLASSES, (GT_BOXES,), generator=seeded(17))
    boxes = 0.25 + 0.5 * torch.rand(GT_BOXES, 4, generator=seeded(18))
    boxes[:, 2:] *= 0.5
    images = torch.rand(1, 3, side, side, generator=seeded(19))
    return MODELS[name](), images, [{"class_labels": labels, "boxes": boxes}]


def case(name: str, step: str, run: Callable[[], Any]) -> Case:
    """The run, with the override and without."""

    def overridden() -> Any:
        with fastdet.override_detr():
            return run()

    return Case(
        op="override_detr",
        workload=f"{name}, {step}, one image",
        sides={"fastdet": overridden, "transformers": run},
        target=1.5 if name == "Deformable DETR" else None,
    )


@pytest.mark.parametrize("name", MODELS)
def bench_inference(beside: Beside, name: str) -> None:
    network, images, _ = model(name, beside)
    network.eval()
    with torch.no_grad():
        beside(case(name, "inference", lambda: network(pixel_values=images)))


@pytest.mark.parametrize("name", MODELS)
def bench_training_step(beside: Beside, name: str) -> None:
    network, images, targets = model(name, beside)
    network.train()

    def step() -> None:
        network.zero_grad()
        network(pixel_values=images, labels=targets).loss.backward()

    beside(case(name, "training step", step))
