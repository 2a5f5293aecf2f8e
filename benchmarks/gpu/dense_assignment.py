# SPDX-License-Identifier: BSD-3-Clause
"""Dense assignment on a GPU, beside the peers' matrices."""

from collections.abc import Callable, Iterator

import fastdet
from benchmarks.dense_assignment import (
    ATSS_IMAGE,
    ATSS_TOPK,
    IMAGE,
    Anchors,
    Dense,
    atss_anchors,
    atss_by_torch,
    dense_outputs,
    simota_by_torch,
    simota_outputs,
    task_aligned_by_torch,
)
from benchmarks.gpu.case import GpuCase, forward
from benchmarks.gpu.device import Device

Cases = Iterator[GpuCase]

TEN_TIMES = 10.0  # the goal of dense assigners: docs/kernels.md


def assign_task_aligned(device: Device) -> Cases:
    for images, gts, largest in ((16, 100, 320), (1, 5000, 40)):
        gts, side = device.size(gts), 160 if device.small else IMAGE
        dense = dense_outputs(images, gts, side, largest)
        yield GpuCase(
            op="assign_task_aligned",
            workload=f"{images} x {len(dense.points):,} anchors, {gts:,} gt",
            inputs=tuple(dense),
            sides={
                "fastdet": forward(lambda *t: fastdet.assign_task_aligned(*t)[0]),
                "torch": forward(lambda *t: task_aligned_by_torch(Dense(*t))),
            },
            bytes=dense.boxes.nbytes + 12 * images * len(dense.points),
            exact=lambda *t: task_aligned_by_torch(Dense(*t).double()),
            target=TEN_TIMES,
        )


def assign_atss(device: Device) -> Cases:
    anchors, sizes = atss_anchors(8, device.size(100), 128 if device.small else ATSS_IMAGE)
    yield GpuCase(
        op="assign_atss",
        workload=f"8 x {len(anchors.boxes):,} anchors, {anchors.gt_boxes.size(1)} gt",
        inputs=tuple(anchors),
        sides={
            "fastdet": forward(lambda a, g, c: fastdet.assign_atss(a, sizes, g, c)[0]),
            "torch": forward(lambda *t: atss_by_torch(Anchors(*t), sizes, ATSS_TOPK)),
        },
        bytes=anchors.boxes.nbytes + 12 * 8 * len(anchors.boxes),
        exact=lambda *t: atss_by_torch(Anchors(*t).double(), sizes, ATSS_TOPK),
        target=TEN_TIMES,
    )


def assign_simota(device: Device) -> Cases:
    dense, strides = simota_outputs(8, device.size(100), 128 if device.small else ATSS_IMAGE)
    scores, boxes, points, *gts = dense
    yield GpuCase(
        op="assign_simota",
        workload=f"8 x {len(points):,} anchors, {dense.gt_boxes.size(1)} gt",
        inputs=(scores, boxes, points, strides, *gts),
        sides={
            "fastdet": forward(lambda *t: fastdet.assign_simota(*t)[0]),
            "torch": forward(lambda s, b, p, r, *g: simota_by_torch(Dense(s, b, p, *g), r)),
        },
        bytes=scores.nbytes + boxes.nbytes + 12 * 8 * len(points),
        exact=lambda s, b, p, r, *g: simota_by_torch(Dense(s, b, p, *g).double(), r.double()),
        target=TEN_TIMES,
    )


SUITES: tuple[Callable[[Device], Cases], ...] = (assign_task_aligned, assign_atss, assign_simota)
