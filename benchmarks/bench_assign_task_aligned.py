# SPDX-License-Identifier: BSD-3-Clause
"""Task-aligned assignment beside Ultralytics' assigner and beside its matrices in torch.

The floor reads the boxes and, of each pair of a gt and a point inside it, the score, which has a
cache line of its own; it writes index and metric. The arithmetic of a pair is about 60 operations.
The search for these pairs comes on top.
"""

import pytest

import fastdet
from benchmarks.alternate import Side
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.dense_assignment import (
    ALPHA,
    BETA,
    IMAGE,
    TOPK,
    assigned_by_ultralytics,
    dense_outputs,
    inside,
    task_aligned_by_torch,
    ultralytics_assigner,
)

OPERATIONS_OF_PAIR = 60
CACHE_LINE = 64
TARGET = 20.0
EXACT_GTS = 1000  # matrices in float64 of more gts take gigabytes


@pytest.mark.parametrize(
    ("images", "gts", "largest"), [(16, 100, 320), (16, 10, 320), (1, 5000, 40)]
)
def bench_yolo(beside: Beside, images: int, gts: int, largest: int) -> None:
    gts, side = beside.size(gts), 160 if beside.run.quick else IMAGE
    dense = dense_outputs(images, gts, side, largest)
    anchors, classes = dense.scores.shape[1:]
    sides: dict[str, Side] = {
        "fastdet": lambda: fastdet.assign_task_aligned(*dense, TOPK, ALPHA, BETA)[0],
        "torch": lambda: task_aligned_by_torch(dense),
    }
    if assigner := ultralytics_assigner(classes):
        sides["Ultralytics"] = lambda: assigned_by_ultralytics(assigner, dense)
    pairs = sum(int(inside(dense.points, boxes).sum()) for boxes in dense.gt_boxes)
    beside(
        Case(
            op="assign_task_aligned",
            workload=f"{images} x {anchors:,} anchors, {gts:,} gt",
            sides=sides,
            floor=stream(
                reads=dense.boxes.nbytes + min(CACHE_LINE * pairs, dense.scores.nbytes),
                writes=12 * images * anchors,
            ),
            operations=OPERATIONS_OF_PAIR * pairs,
            exact=(lambda: task_aligned_by_torch(dense.double())) if gts <= EXACT_GTS else None,
            target=TARGET,
        )
    )
