# SPDX-License-Identifier: BSD-3-Clause
"""From a box head's outputs to detections. The floor reads the logits once."""

import torch
from torch import Tensor

import fastdet
from benchmarks import torchvision_heads
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.torchvision_heads import BOX_HEAD_WEIGHTS
from benchmarks.workloads import box_head

CLASSES = 91
SIZE = (800, 1216)


def bench_one_image(beside: Beside) -> None:
    n = beside.size(1000)
    logits, deltas, proposals = box_head(n, CLASSES)
    sizes = torch.tensor([SIZE])

    def ours() -> tuple[Tensor, ...]:
        *found, counts = fastdet.roi_detections(
            logits[None],
            deltas[None],
            proposals[None],
            None,
            sizes,
            BOX_HEAD_WEIGHTS,
            0.05,
            0.5,
            100,
        )
        return tuple(x[0, : int(counts)] for x in found)

    def theirs(logits: Tensor, deltas: Tensor, proposals: Tensor) -> list[list[Tensor]]:
        return torchvision_heads.roi_detections(logits, deltas, proposals, SIZE)

    beside(
        Case(
            op="roi_detections",
            workload=f"{n:,} proposals, {CLASSES} classes",
            sides={
                "fastdet": ours,
                "torchvision": lambda: theirs(logits, deltas, proposals),
            },
            floor=stream(reads=logits.nbytes),
            exact=lambda: theirs(logits.double(), deltas.double(), proposals.double()),
        )
    )
