# SPDX-License-Identifier: BSD-3-Clause
"""Functions of `fastdet.numpy` that torchvision lacks, beside the alternatives without torch."""

import numpy as np
import pytest

import fastdet.numpy
from benchmarks.bench_nms import numpy_nms, opencv, xywh
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.workloads import scene


@pytest.mark.skipif(opencv is None, reason="needs OpenCV, the only peer")
def bench_soft_nms(beside: Beside) -> None:
    n = beside.size(2_000)
    boxes, scores = (x.numpy() for x in scene(n, objects=max(1, n // 50)))
    rounded = xywh(boxes).astype(np.int32)  # OpenCV's takes only integers
    beside(
        Case(
            op="soft_nms",
            workload=f"{n:,} boxes about {n // 50} objects, gaussian",
            sides={
                "fastdet": lambda: fastdet.numpy.soft_nms(
                    boxes, scores, sigma=0.5, score_threshold=0.05, method="gaussian"
                ),
                "OpenCV": lambda: opencv.softNMSBoxes(rounded, scores, 0.05, 0.3, sigma=0.5),
            },
        )
    )


def bench_yolo(beside: Beside) -> None:
    """An exported YOLO's 8,400 boxes with 80 scores each, class by class."""
    n, classes = beside.size(8_400), 80
    boxes, best = (x.numpy() for x in scene(n, objects=max(1, n // 200)))
    scores = np.random.default_rng(14).random((n, classes), np.float32) * 0.2
    scores[np.arange(n), np.arange(n) % 5] = best

    def candidates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = scores.argmax(1)
        values = scores[np.arange(n), labels]
        rows = np.flatnonzero(values > 0.25)
        return rows, values[rows], labels[rows]

    def by_numpy() -> np.ndarray:
        rows, values, labels = candidates()
        # The usual way: an offset for each class, so that boxes of two classes never overlap.
        return rows[numpy_nms(boxes[rows] + 4096.0 * labels[:, None], values, 0.7)]

    def by_opencv() -> np.ndarray:
        rows, values, labels = candidates()
        return rows[opencv.NMSBoxesBatched(xywh(boxes[rows]), values, labels, 0.25, 0.7)]

    sides = {
        "fastdet": lambda: fastdet.numpy.multiclass_nms(boxes, scores, 0.25, 0.7, n),
        "NumPy": by_numpy,
    }
    if opencv:
        sides["OpenCV"] = by_opencv
    beside(
        Case(
            op="multiclass_nms",
            workload=f"{n:,} boxes, {classes} classes",
            sides=sides,
            floor=lambda: scores.max(),
        )
    )
