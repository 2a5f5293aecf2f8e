# SPDX-License-Identifier: BSD-3-Clause
"""The fusion of the boxes of five models. The floor is that of NMS: sort and read."""

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdet.numpy
from benchmarks.alternate import Side
from benchmarks.bench_nms import sort_and_look
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.results import Point
from benchmarks.workloads import scene, seeded

try:
    peer: Any = importlib.import_module("ensemble_boxes")
except ModuleNotFoundError as error:
    warnings.warn(f"{error}: fusion is not compared with ensemble-boxes'", stacklevel=1)
    peer = None

MODELS = 5
MOST_FOR_PEER = 10_000  # boxes; its time is quadratic
Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def ensemble(n: int, classes: int) -> Rows:
    """Boxes (n, 4) in [0, 1], scores, labels and models, each (n,); ten boxes about each object."""
    boxes, scores = scene(n, objects=max(1, n // (2 * MODELS)))
    boxes = (boxes / torch.tensor([1216.0, 800, 1216, 800])).clamp(0, 1)
    labels = torch.randint(0, classes, (n,), generator=seeded(24))
    return boxes, scores, labels, torch.arange(n) % MODELS


def of_ensemble_boxes(rows: Rows) -> dict[str, Side]:
    if peer is None or len(rows[0]) > MOST_FOR_PEER:
        return {}
    boxes, scores, labels = (
        [part[rows[3] == m].numpy() for m in range(MODELS)] for part in rows[:3]
    )

    def fuse() -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # boxes without area
            fused = peer.weighted_boxes_fusion(boxes, scores, labels, iou_thr=0.55)
        return [torch.from_numpy(part) for part in fused]

    return {"ensemble-boxes": fuse}


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("n", [1_000, 10_000, 100_000])
def bench_models(beside: Beside, n: int, classes: int) -> None:
    n = beside.size(n)
    rows, weights = ensemble(n, classes), [1.0] * MODELS
    b, s, i, m = (part.numpy() for part in rows)
    beside(
        Case(
            op="weighted_boxes_fusion",
            workload=f"{MODELS} models x {n // MODELS:,} boxes, classes: {classes}",
            sides={
                "fastdet": lambda: fastdet.weighted_boxes_fusion(*rows, weights),
                **of_ensemble_boxes(rows),
                "fastdet.numpy": lambda: fastdet.numpy.weighted_boxes_fusion(b, s, i, m, weights),
            },
            floor=sort_and_look(*rows[:2]),
            growth=n != MOST_FOR_PEER,
            point=Point("weighted_boxes_fusion", "boxes", n) if classes == 80 else None,
        )
    )
