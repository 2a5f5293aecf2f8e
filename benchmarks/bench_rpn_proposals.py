# SPDX-License-Identifier: BSD-3-Clause
"""From an RPN's outputs to proposals, decoding included. The floor reads the logits once.

Both sides get the outputs as rows; torchvision's copy of them from maps into rows is not counted.
"""

import torch
from torch import Tensor

import fastdet
from benchmarks import torchvision_heads
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.torchvision_heads import RPN_NUMBERS
from benchmarks.workloads import head

IMAGES = 2


def bench_two_images(beside: Beside) -> None:
    quick = beside.run.quick
    h = head(IMAGES, 1, 4, [(s,) for s in (32, 64, 128, 256, 512)], small=quick)
    objectness = [level.squeeze(2) for level in h.logits]
    anchors = torch.cat(h.anchors)
    height, width = (128, 128) if quick else (800, 1216)
    sizes = torch.tensor([[height, width]] * IMAGES)

    def ours() -> list[tuple[Tensor, ...]]:
        *found, _, counts = fastdet.rpn_proposals(
            objectness, h.deltas, anchors, sizes, **RPN_NUMBERS
        )
        return [tuple(x[b, :n] for x in found) for b, n in enumerate(counts.tolist())]

    beside(
        Case(
            op="rpn_proposals",
            workload=f"{IMAGES} images of {height} x {width}, {len(anchors):,} anchors of 5 levels",
            sides={
                "fastdet": ours,
                "torchvision": lambda: torchvision_heads.rpn_proposals(h, (height, width)),
            },
            floor=stream(reads=sum(level.nbytes for level in objectness)),
            exact=lambda: torchvision_heads.rpn_proposals(h.double(), (height, width)),
            target=8.0,
        )
    )
