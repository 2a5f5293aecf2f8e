# SPDX-License-Identifier: BSD-3-Clause
"""Anchor matching. torchvision computes a matrix of IoUs and applies its Matcher.

The floor is the arithmetic of one IoU per pair, without the division. An implementation that skips
pairs that cannot overlap can be faster than this floor.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fastdet
from benchmarks import torchvision_heads
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.results import Point
from benchmarks.workloads import RETINANET_SIZES, head, random_boxes

OPERATIONS = 10
TARGETS = {30: 150.0, 100: 120.0}


def case(anchors: Tensor, gt_boxes: Tensor, high: float, low: float, name: str) -> Case:
    """Both sides' indices of an image's anchors."""

    def theirs(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        return torchvision_heads.match_anchors(anchors, gt_boxes, high, low)

    counts = torch.tensor([len(gt_boxes)])
    return Case(
        op="match_anchors",
        workload=f"{len(anchors):,} {name}, {len(gt_boxes)} gt",
        sides={
            "fastdet": lambda: fastdet.match_anchors(anchors, gt_boxes[None], counts, high, low)[0][
                0
            ],
            "torchvision": lambda: theirs(anchors, gt_boxes),
        },
        floor=stream(reads=16 * len(anchors), writes=12 * len(anchors)),
        operations=OPERATIONS * len(anchors) * len(gt_boxes),
        exact=lambda: theirs(anchors.double(), gt_boxes.double()),
    )


@pytest.mark.parametrize("num_gts", [10, 30, 100, 500])
def bench_random_anchors(beside: Beside, num_gts: int) -> None:

    anchors = random_boxes(beside.size(200_000), 1216, 800, 300)
    gt_boxes = random_boxes(num_gts, 1216, 800, 300, seed=3)
    one = case(anchors, gt_boxes, 0.7, 0.3, "random anchors")
    point = Point("match_anchors, 200k anchors", "gt boxes", num_gts)
    target = TARGETS.get(num_gts)
    beside(replace(one, target=target, growth=target is None, point=point))


def bench_retinanet_anchors(beside: Beside) -> None:
    anchors = torch.cat(head(1, 1, 8, RETINANET_SIZES, small=beside.run.quick).anchors)
    beside(case(anchors, random_boxes(30, 1100, 700, 300, seed=3), 0.5, 0.4, "RetinaNet anchors"))
