# SPDX-License-Identifier: BSD-3-Clause
"""Adaptive training sample selection beside its matrices in torch.

The floor reads the anchors, writes index and IoU, and computes the IoUs of the candidates, 45 of
each gt: about 20 operations each. The search for the nearest anchors comes on top.
"""

import pytest

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.dense_assignment import (
    ATSS_IMAGE,
    ATSS_TOPK,
    STRIDES,
    atss_anchors,
    atss_by_torch,
)

OPERATIONS_OF_CANDIDATE = 20
TARGET = 20.0


@pytest.mark.parametrize(("images", "gts"), [(8, 100), (8, 10)])
def bench_pyramid(beside: Beside, images: int, gts: int) -> None:
    side = 128 if beside.run.quick else ATSS_IMAGE
    anchors, sizes = atss_anchors(images, beside.size(gts), side)
    candidates = images * anchors.gt_boxes.size(1) * ATSS_TOPK * len(STRIDES)
    beside(
        Case(
            op="assign_atss",
            workload=f"{images} x {len(anchors.boxes):,} anchors, {anchors.gt_boxes.size(1)} gt",
            sides={
                "fastdet": lambda: fastdet.assign_atss(
                    anchors.boxes, sizes, anchors.gt_boxes, anchors.gt_counts, ATSS_TOPK
                )[0],
                "torch": lambda: atss_by_torch(anchors, sizes, ATSS_TOPK),
            },
            floor=stream(reads=anchors.boxes.nbytes, writes=12 * images * len(anchors.boxes)),
            operations=OPERATIONS_OF_CANDIDATE * candidates,
            exact=lambda: atss_by_torch(anchors.double(), sizes, ATSS_TOPK),
            target=TARGET,
        )
    )
