# SPDX-License-Identifier: BSD-3-Clause
"""IoUs of all pairs. The floor writes the result of each pair once, to new memory."""

import pytest
import torchvision

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import random_boxes

# Arithmetic of a pair: 4 min and max, 2 differences, 2 clamps, a product, a sum and a difference
# for the union, a quotient; then what the hull, the distance and the angles add.
OPERATIONS = {"box_iou": 12, "generalized_box_iou": 21, "distance_box_iou": 26}


@pytest.mark.parametrize("op", [*OPERATIONS, "complete_box_iou"])
def bench_all_pairs(beside: Beside, op: str) -> None:
    n, m = 100, beside.size(200_000 if op == "box_iou" else 20_000)
    boxes1, boxes2 = random_boxes(n, 1216, 800, 300, seed=3), random_boxes(m, 1216, 800, 300)
    ours, theirs = getattr(fastdet, op), getattr(torchvision.ops, op)
    beside(
        Case(
            op=op,
            workload=f"{n} x {m:,}",
            sides={
                "fastdet": lambda: ours(boxes1, boxes2),
                "torchvision": lambda: theirs(boxes1, boxes2),
            },
            floor=stream(reads=16 * m, writes=4 * n * m),
            operations=n * m * OPERATIONS.get(op, 34),
            exact=lambda: theirs(boxes1.double(), boxes2.double()),
            target=10.0 if op == "box_iou" else None,
        )
    )
