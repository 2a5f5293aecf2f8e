# SPDX-License-Identifier: BSD-3-Clause
"""SimOTA beside its matrices in torch.

The floor reads scores and boxes, writes index and IoU, and does the arithmetic of the pairs of a gt
and an anchor in it and near its centre: about 80 operations each. The sums over the classes and the
IoUs of the other candidates come on top.
"""

import pytest
from torch import Tensor

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.dense_assignment import (
    ATSS_IMAGE,
    RADIUS,
    Dense,
    inside,
    simota_by_torch,
    simota_outputs,
)

OPERATIONS_OF_PAIR = 80
TARGET = 20.0


def central_pairs(dense: Dense, strides: Tensor) -> int:
    """The number of pairs of a gt and an anchor in it and near its centre."""
    pairs = 0
    for boxes in dense.gt_boxes:
        centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # (G, 1, 2)
        near = (dense.points - centre).abs().amax(2) < RADIUS * strides
        pairs += int((near & inside(dense.points, boxes)).sum())
    return pairs


@pytest.mark.parametrize(("images", "gts"), [(8, 100), (8, 10)])
def bench_pyramid(beside: Beside, images: int, gts: int) -> None:
    side = 128 if beside.run.quick else ATSS_IMAGE
    dense, strides = simota_outputs(images, beside.size(gts), side)
    scores, boxes, points = dense[:3]
    predictions = scores, boxes, points, strides
    targets = dense.gt_labels, dense.gt_boxes, dense.gt_counts
    beside(
        Case(
            op="assign_simota",
            workload=f"{images} x {len(points):,} anchors, {dense.gt_boxes.size(1)} gt",
            sides={
                "fastdet": lambda: fastdet.assign_simota(*predictions, *targets)[0],
                "torch": lambda: simota_by_torch(dense, strides),
            },
            floor=stream(reads=scores.nbytes + boxes.nbytes, writes=12 * images * len(points)),
            operations=OPERATIONS_OF_PAIR * central_pairs(dense, strides),
            exact=lambda: simota_by_torch(dense.double(), strides.double()),
            target=TARGET,
        )
    )
