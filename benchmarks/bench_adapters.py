# SPDX-License-Identifier: BSD-3-Clause
"""SAHI, supervision and Ultralytics, unchanged, with and without `fastdet.adapters`.

SAHI's post-processing takes and gives one Python object for each box. The adapter replaces how
boxes are grouped. SAHI then merges the objects of a group one by one; that is most of what is left.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdet
from benchmarks.bench_nmm import new_prediction
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.workloads import TILED, scene, seeded, tiled
from fastdet.replacement import Override


def case(
    workload: str,
    peer: str,
    adapter: Callable[[], Override],
    run: Callable[[], Any],
    target: float | None = None,
) -> Case:
    """The run, with the adapter and without."""

    def adapted() -> Any:
        with adapter():
            return run()

    return Case(
        op="adapters", workload=workload, sides={"fastdet": adapted, peer: run}, target=target
    )


@pytest.mark.parametrize("kind", ["NMS", "GreedyNMM", "NMM"])
def bench_sahi(beside: Beside, kind: str) -> None:
    combine = pytest.importorskip("sahi.postprocess.combine")
    n = beside.size(TILED)
    boxes, scores = tiled(n)
    predictions = [
        new_prediction(bbox=box, category_id=0, score=score, category_name="a")
        for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)
    ]
    merge = getattr(combine, f"{kind}Postprocess")(0.5, "IOS", class_agnostic=True)

    def run() -> int:
        return len(merge(list(predictions)))  # it replaces list items

    workload = f"SAHI's {kind}Postprocess, {n:,} boxes of 400 tiles, ios"
    beside(case(workload, "SAHI", fastdet.adapters.sahi, run))


@pytest.mark.parametrize("n", [1_000, 5_000])
@pytest.mark.parametrize("method", ["with_nms", "with_nmm"])
def bench_supervision(beside: Beside, method: str, n: int) -> None:
    supervision = pytest.importorskip("supervision")
    n = beside.size(n)
    boxes, scores = scene(n, objects=max(1, n // 50))
    classes = torch.randint(0, 80, (n,), generator=seeded(24))
    detections = supervision.Detections(
        boxes.numpy(), confidence=scores.numpy(), class_id=classes.numpy()
    )

    def run() -> int:
        return len(getattr(detections, method)(0.5))

    workload = f"supervision's {method}, {n:,} boxes, 80 classes"
    beside(case(workload, "supervision", fastdet.adapters.supervision, run))


def yolo_output(anchors: int) -> Tensor:
    """(1, 84, anchors): xywh and the scores of 80 classes, as a YOLO model gives them."""
    boxes, scores = scene(anchors, objects=max(1, anchors // 50))
    xywh = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    by_class = 0.001 * torch.rand(anchors, 80, generator=seeded(25))
    classes = torch.arange(anchors) % 3
    by_class[torch.arange(anchors), classes] = scores
    return torch.cat([xywh, by_class], 1).T[None].contiguous()


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """As if nothing had imported the module, which is what Ultralytics looks at."""
    found: ModuleType | None = sys.modules.pop(module, None)
    try:
        yield
    finally:
        if found is not None:
            sys.modules[module] = found


@pytest.mark.parametrize("with_torchvision", [False, True])
@pytest.mark.parametrize("conf_thres", [0.25, 0.001], ids=["predict", "val"])
def bench_ultralytics(beside: Beside, conf_thres: float, with_torchvision: bool) -> None:
    nms = pytest.importorskip("ultralytics.utils.nms")
    if with_torchvision:
        importlib.import_module("torchvision")
    n = beside.size(8_400)
    output = yolo_output(n)

    def run() -> int:
        found = nms.non_max_suppression(output, conf_thres, 0.7, multi_label=conf_thres < 0.01)
        return len(found[0])

    def run_without_torchvision() -> int:
        with hidden("torchvision"):
            return run()

    rival = "torchvision" if with_torchvision else "TorchNMS"
    workload = f"Ultralytics' non_max_suppression, {n:,} anchors, confidence {conf_thres}, {rival}"
    chosen = run if with_torchvision else run_without_torchvision
    beside(case(workload, "Ultralytics", fastdet.adapters.ultralytics, chosen))
