# SPDX-License-Identifier: BSD-3-Clause
"""Calls on four boxes: the overhead of a call. The target is torchvision's time + 2 us."""

import torch
import torchvision

import fastdet
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.workloads import random_boxes


def bench_nms(beside: Beside) -> None:
    boxes, scores = random_boxes(4, 100, 100, 50), torch.rand(4)
    beside(
        Case(
            op="nms",
            workload="4 boxes",
            sides={
                "fastdet": lambda: fastdet.nms(boxes, scores, 0.5),
                "torchvision": lambda: torchvision.ops.nms(boxes, scores, 0.5),
            },
        )
    )


def bench_box_iou(beside: Beside) -> None:
    boxes = random_boxes(4, 100, 100, 50)
    beside(
        Case(
            op="box_iou",
            workload="4 x 4",
            sides={
                "fastdet": lambda: fastdet.box_iou(boxes, boxes),
                "torchvision": lambda: torchvision.ops.box_iou(boxes, boxes),
            },
        )
    )


def bench_roi_align(beside: Beside) -> None:
    features, rois = (
        torch.rand(1, 4, 16, 16),
        torch.nn.functional.pad(random_boxes(4, 9, 9, 5), (1, 0)),
    )
    beside(
        Case(
            op="roi_align",
            workload="4 RoIs of 4 channels",
            sides={
                "fastdet": lambda: fastdet.roi_align(features, rois, 2, 1.0, 2),
                "torchvision": lambda: torchvision.ops.roi_align(features, rois, 2, 1.0, 2),
            },
        )
    )
