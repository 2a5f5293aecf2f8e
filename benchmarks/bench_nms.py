# SPDX-License-Identifier: BSD-3-Clause
"""NMS. The floor is what every implementation must do: sort the scores and read each box."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

import fastdet.numpy
from benchmarks.alternate import Side
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.results import Point
from benchmarks.workloads import random_boxes, scene, seeded

try:
    import cv2

    opencv: Any = cv2.dnn
except ModuleNotFoundError as error:
    warnings.warn(f"{error}: NMS is not compared with OpenCV's", stacklevel=1)
    opencv = None

TARGETS = {1_000: 30.0, 5_000: 60.0, 20_000: 200.0}

# Peers of quadratic time run only at sizes where a call takes less than about a second.
MOST_FOR_SQUARE = 20_000


def numpy_nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """The well-known NumPy loop, from Fast R-CNN's nms/py_cpu_nms.py."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    order = scores.argsort()[::-1]
    keep = []
    while order.size > 0:
        best, rest = order[0], order[1:]
        keep.append(best)
        width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        iou = inter / (areas[best] + areas[rest] - inter)
        order = rest[iou <= iou_threshold]
    return np.array(keep)


def xywh(boxes: np.ndarray) -> np.ndarray:
    """Boxes as OpenCV takes them."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def without_torch(boxes: np.ndarray, scores: np.ndarray) -> dict[str, Side]:
    """fastdet and the usual alternatives."""
    sides: dict[str, Side] = {"fastdet.numpy": lambda: fastdet.numpy.nms(boxes, scores, 0.5)}
    if len(boxes) <= MOST_FOR_SQUARE:
        sides["NumPy"] = lambda: numpy_nms(boxes, scores, 0.5)
        if opencv:
            theirs = xywh(boxes)
            sides["OpenCV"] = lambda: opencv.NMSBoxes(theirs, scores, 0.0, 0.5)
    return sides


def sort_and_look(boxes: Tensor, scores: Tensor) -> Callable[[], object]:
    """The floor, by NumPy's sort: it is vectorised where the processor has AVX-512."""
    values, rows = scores.numpy(), boxes.numpy()
    return lambda: rows[values.argsort()]


def both(boxes: Tensor, scores: Tensor) -> dict[str, Side]:
    """fastdet and, where it is fast enough, torchvision."""
    sides: dict[str, Side] = {"fastdet": lambda: fastdet.nms(boxes, scores, 0.5)}
    if len(boxes) <= MOST_FOR_SQUARE:
        sides["torchvision"] = lambda: torchvision.ops.nms(boxes, scores, 0.5)
    return sides


def exact(boxes: Tensor, scores: Tensor) -> Callable[[], Tensor] | None:
    if len(boxes) > MOST_FOR_SQUARE:
        return None
    return lambda: torchvision.ops.nms(boxes.double(), scores.double(), 0.5)


@pytest.mark.parametrize("n", [100, 1_000, 5_000, 20_000, 100_000])
def bench_random_boxes(beside: Beside, n: int) -> None:
    n = beside.size(n)
    boxes, scores = random_boxes(n, 1000, 1000, 100), torch.rand(n, generator=seeded(1))
    beside(
        Case(
            op="nms",
            workload=f"{n:,} random boxes",
            sides=both(boxes, scores) | without_torch(boxes.numpy(), scores.numpy()),
            floor=sort_and_look(boxes, scores),
            exact=exact(boxes, scores),
            target=TARGETS.get(n),
            growth=n not in TARGETS,
            point=Point("nms, random boxes", "boxes", n),
        )
    )


@pytest.mark.parametrize("n", [1_000, 10_000, 100_000])
def bench_scene(beside: Beside, n: int) -> None:
    n = beside.size(n)
    boxes, scores = scene(n, objects=max(1, n // 50))
    beside(
        Case(
            op="nms",
            workload=f"{n:,} boxes about {n // 50:,} objects",
            sides=both(boxes, scores),
            floor=sort_and_look(boxes, scores),
            exact=exact(boxes, scores),
            growth=n != 10_000,
            point=Point("nms, 50 boxes about each object", "boxes", n),
        )
    )


@pytest.mark.parametrize("n", [1_000, 5_000, 20_000, 100_000])
def bench_batched(beside: Beside, n: int) -> None:
    n = beside.size(n)
    boxes, scores = random_boxes(n, 1000, 1000, 100), torch.rand(n, generator=seeded(1))
    ids = torch.randint(0, 80, (n,), generator=seeded(2))

    def of_each_class() -> Tensor:
        kept = [
            rows[torchvision.ops.nms(boxes[rows].double(), scores[rows].double(), 0.5)]
            for rows in (torch.where(ids == c)[0] for c in range(80))
        ]
        kept = torch.cat(kept).sort().values
        return kept[scores[kept].argsort(descending=True, stable=True)]

    beside(
        Case(
            op="batched_nms",
            workload=f"{n:,} boxes, 80 classes",
            sides={
                "fastdet": lambda: fastdet.batched_nms(boxes, scores, ids, 0.5),
                "torchvision": lambda: torchvision.ops.batched_nms(boxes, scores, ids, 0.5),
            },
            floor=sort_and_look(boxes, scores),
            exact=of_each_class,
            target=10.0 if n == 20_000 else None,
            growth=n != 20_000,
            point=Point("batched_nms, 80 classes", "boxes", n),
        )
    )


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def bench_soft(beside: Beside, method: str, classes: int) -> None:
    n = beside.size(2_000)
    boxes, scores = scene(n, objects=max(1, n // 50))
    labels = torch.randint(0, classes, (n,), generator=seeded(2)) if classes > 1 else None
    rule = (0.3, 0.5, 0.05, method)
    arrays = boxes.numpy(), scores.numpy(), *rule, None if labels is None else labels.numpy()
    beside(
        Case(
            op="soft_nms",
            workload=f"{n:,} boxes about {n // 50} objects, {method}, classes: {classes}",
            sides={
                "fastdet": lambda: fastdet.soft_nms(boxes, scores, *rule, labels),
                "fastdet.numpy": lambda: fastdet.numpy.soft_nms(*arrays),
            },
            floor=sort_and_look(boxes, scores),
        )
    )


def bench_padded(beside: Beside) -> None:
    n, most = beside.size(5_000), beside.size(1_000)
    images = [scene(n, objects=max(1, n // 50), seed=image) for image in range(2)]
    boxes, scores = (torch.stack(parts) for parts in zip(*images, strict=True))

    def one_by_one(dtype: torch.dtype) -> list[Tensor]:
        return [
            torchvision.ops.nms(b, s, 0.5)[:most]
            for b, s in zip(boxes.to(dtype), scores.to(dtype), strict=True)
        ]

    def padded() -> list[Tensor]:
        keep, counts = fastdet.nms_padded(boxes, scores, 0.5, most)
        return [rows[:count] for rows, count in zip(keep, counts.tolist(), strict=True)]

    beside(
        Case(
            op="nms_padded",
            workload=f"2 images, {n:,} boxes about {n // 50:,} objects, the best {most:,}",
            sides={"fastdet": padded, "torchvision": lambda: one_by_one(torch.float32)},
            floor=sort_and_look(boxes.flatten(0, 1), scores.flatten()),
            exact=lambda: one_by_one(torch.float64),
        )
    )
