# SPDX-License-Identifier: BSD-3-Clause
"""Non-maximum merging of the boxes of many tiles. The floor is that of NMS: sort and read.

SAHI's `greedy_nmm` and `nmm` give the groups of an array of boxes; its `GreedyNMMPostprocess` also
merges the boxes, as fastdet's operator does, but takes and gives one Python object for each box.
"""

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
from benchmarks.workloads import TILED, seeded, tiled

try:
    sahi: Any = importlib.import_module("sahi.postprocess.combine")
    new_prediction: Any = importlib.import_module("sahi.prediction").ObjectPrediction
except ModuleNotFoundError as error:
    warnings.warn(f"{error}: merging is not compared with SAHI's", stacklevel=1)
    sahi = new_prediction = None


def of_sahi(boxes: Tensor, scores: Tensor, metric: str, transitive: bool) -> dict[str, Side]:
    """SAHI's groups, and its merged boxes."""
    if sahi is None:
        return {}
    rows = torch.cat([boxes, scores[:, None], torch.zeros(len(boxes), 1)], 1).numpy()
    groups = sahi.nmm if transitive else sahi.greedy_nmm
    kind = sahi.NMMPostprocess if transitive else sahi.GreedyNMMPostprocess
    merge = kind(0.5, metric.upper(), class_agnostic=True)
    predictions = [
        new_prediction(bbox=box, category_id=0, score=score, category_name="a")
        for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)
    ]
    return {
        "SAHI, merged boxes": lambda: len(merge(list(predictions))),  # it replaces list items
        "SAHI, groups alone": lambda: len(groups(rows, metric.upper(), 0.5)),
    }


@pytest.mark.parametrize("transitive", [False, True], ids=["greedy", "transitive"])
@pytest.mark.parametrize("metric", ["iou", "ios"])
def bench_tiles(beside: Beside, metric: str, transitive: bool) -> None:
    n = beside.size(TILED)
    boxes, scores = tiled(n)
    arrays = boxes.numpy(), scores.numpy()
    rule = "transitive" if transitive else "greedy"
    beside(
        Case(
            op="nmm",
            workload=f"{n:,} boxes of 400 tiles, {metric}, {rule}",
            sides={
                "fastdet": lambda: fastdet.nmm(boxes, scores, None, 0.5, metric, transitive),
                **of_sahi(boxes, scores, metric, transitive),
                "fastdet.numpy": lambda: fastdet.numpy.nmm(*arrays, None, 0.5, metric, transitive),
            },
            floor=sort_and_look(boxes, scores),
            growth=transitive,
        )
    )


@pytest.mark.parametrize("n", [1_000, 10_000, 100_000])
def bench_growth(beside: Beside, n: int) -> None:
    n = beside.size(n)
    boxes, scores = tiled(n)
    arrays = boxes.numpy(), scores.numpy()
    labels = torch.randint(0, 80, (n,), generator=seeded(23))
    beside(
        Case(
            op="nmm",
            workload=f"{n:,} boxes of 400 tiles, 80 classes",
            sides={
                "fastdet": lambda: fastdet.nmm(boxes, scores, labels, metric="ios"),
                "fastdet.numpy": lambda: fastdet.numpy.nmm(*arrays, labels.numpy(), metric="ios"),
            },
            floor=sort_and_look(boxes, scores),
            growth=True,
            point=Point("nmm, 80 classes", "boxes", n),
        )
    )
