# SPDX-License-Identifier: BSD-3-Clause
"""From a box head's outputs to detections. The floor reads the logits once."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import scene, seeded

CLASSES = 91
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def bench_one_image(beside: Beside) -> None:
    n = beside.size(1000)
    proposals, _ = scene(n, objects=max(1, n // 50))
    deltas = torch.randn(n, CLASSES, 4, generator=seeded(12))
    # A fifth of the proposals lies on something, and then on one of three classes.
    logits = torch.randn(n, CLASSES, generator=seeded(13))
    logits[:, 0] += 7
    on_something = torch.arange(0, n, 5)
    logits[on_something, 1 + on_something % 3] += 8
    sizes = torch.tensor([[800, 1216]])

    def ours() -> tuple[Tensor, ...]:
        *found, counts = fastdet.roi_detections(
            logits[None], deltas[None], proposals[None], None, sizes, WEIGHTS, 0.05, 0.5, 100
        )
        return tuple(x[0, : int(counts)] for x in found)

    numbers: Any = SimpleNamespace(
        score_thresh=0.05, nms_thresh=0.5, detections_per_img=100, box_coder=BoxCoder(WEIGHTS)
    )

    def theirs(logits: Tensor, deltas: Tensor, proposals: Tensor) -> list[list[Tensor]]:
        found = RoIHeads.postprocess_detections(
            numbers, logits, deltas.flatten(1), [proposals], [(800, 1216)]
        )
        return list(found)

    beside(
        Case(
            op="roi_detections",
            workload=f"{n:,} proposals, {CLASSES} classes",
            sides={"fastdet": ours, "torchvision": lambda: theirs(logits, deltas, proposals)},
            floor=stream(reads=logits.nbytes),
            exact=lambda: theirs(logits.double(), deltas.double(), proposals.double()),
        )
    )
