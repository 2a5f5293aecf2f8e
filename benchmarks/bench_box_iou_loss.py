# SPDX-License-Identifier: BSD-3-Clause
"""IoU losses of pairs, forward and backward. Two arrays of boxes in, the loss and one array out."""

import pytest
import torchvision

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import gradients, random_boxes

OPS = ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"]


@pytest.mark.parametrize("op", OPS)
def bench_forward_and_backward(beside: Beside, op: str) -> None:
    n = beside.size(100_000)
    boxes1 = random_boxes(n, 100, 100, 300, seed=5).requires_grad_()
    boxes2 = random_boxes(n, 100, 100, 300, seed=6)
    wide1 = boxes1.detach().double().requires_grad_()
    wide2 = boxes2.double()
    ours, theirs = getattr(fastdet, op), getattr(torchvision.ops, op)
    beside(
        Case(
            op=op,
            workload=f"{n:,}, forward and backward",
            sides={
                "fastdet": gradients(lambda: ours(boxes1, boxes2), [boxes1]),
                "torchvision": gradients(lambda: theirs(boxes1, boxes2), [boxes1]),
            },
            floor=stream(reads=32 * n, writes=20 * n),
            exact=gradients(lambda: theirs(wide1, wide2), [wide1]),
            target=8.0 if op == OPS[0] else None,
        )
    )
