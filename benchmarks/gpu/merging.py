# SPDX-License-Identifier: BSD-3-Clause
"""Merging of boxes and Soft-NMS on a GPU, beside the same rule in torch.

No other package has them on a GPU. The torch forms visit one box after another, as the definitions
do, with a few launches for each and without a host sync.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

import fastdet
from benchmarks.alternate import Rounds
from benchmarks.gpu.case import GpuCase, forward
from benchmarks.gpu.device import Device
from benchmarks.workloads import TILED, scene, tiled

HUNDRED_TIMES = 100.0  # the goal of nmm: docs/kernels.md
THRESHOLD = 0.5
IOU, SCORE = 0.3, 0.05  # of Soft-NMS


def overlaps(box: Tensor, boxes: Tensor, metric: str) -> Tensor:
    """(4,), (N, 4) -> (N,): the overlap of one box with each."""
    sides = (box[2:].minimum(boxes[:, 2:]) - box[:2].maximum(boxes[:, :2])).clamp(min=0)
    inter = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return inter / (areas.minimum(area) if metric == "ios" else areas + area - inter)


def greedy_by_torch(boxes: Tensor, scores: Tensor, metric: str) -> Tensor:
    """The index that `nmm` gives under the greedy rule."""
    order = scores.argsort(descending=True, stable=True)
    ordered = boxes[order]
    rows = torch.arange(len(boxes), device=boxes.device)
    index = rows.clone()
    for row in range(len(boxes)):
        kept = index[row] == row
        joins = (overlaps(ordered[row], ordered, metric) >= THRESHOLD) & (rows > row)
        index = index.where(~(joins & kept & (index == rows)), row)
    return torch.empty_like(order).scatter(0, order, order[index])


def soft_nms_by_torch(boxes: Tensor, scores: Tensor) -> Tensor:
    """The scores that `soft_nms` gives under the linear rule."""
    left, picked = scores.where(scores >= SCORE, -1.0), []
    for _ in range(len(boxes)):
        score, best = left.max(dim=0)
        picked.append(score.clamp(min=0))
        overlap = overlaps(boxes[best], boxes, "iou")
        left = left * (1 - overlap).where(overlap >= IOU, 1.0)
        left = left.where(left >= SCORE, -1.0).scatter(0, best[None], -1.0)
    return torch.stack(picked)


def nmm(device: Device) -> Iterator[GpuCase]:
    """A call of the torch form takes seconds: no copies of the inputs, and few rounds."""
    n, metric = device.size(TILED), "ios"
    boxes, scores = (part.to(device.name) for part in tiled(n))

    def ours(boxes: Tensor, scores: Tensor) -> Tensor:
        return fastdet.nmm(boxes, scores, None, THRESHOLD, metric)[0]

    yield GpuCase(
        op="nmm",
        workload=f"{n:,} boxes of 400 tiles, {metric}, greedy",
        inputs=(),
        sides={
            "fastdet": lambda: lambda: ours(boxes, scores),
            "torch": lambda: lambda: greedy_by_torch(boxes, scores, metric),
        },
        exact=lambda: ours(boxes.cpu(), scores.cpu()).to(device.name),
        target=HUNDRED_TIMES,
        rounds=None if device.small else Rounds(seconds=2.0, least=2, most=3),
    )


def soft_nms(device: Device) -> Iterator[GpuCase]:
    n = device.size(2_000)

    def ours(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return fastdet.soft_nms(boxes, scores, IOU, score_threshold=SCORE)

    yield GpuCase(
        op="soft_nms",
        workload=f"{n:,} boxes about {n // 50} objects, linear",
        inputs=scene(n, objects=max(1, n // 50)),
        sides={"fastdet": forward(ours), "torch": forward(soft_nms_by_torch)},
        exact=lambda b, s: ours(b.double().cpu(), s.double().cpu())[1].to(b.device),
        compared=lambda found: found[1],
        target=None,
    )


SUITES = (nmm, soft_nms)
