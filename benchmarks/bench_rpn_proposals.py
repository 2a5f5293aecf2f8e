# SPDX-License-Identifier: BSD-3-Clause
"""From an RPN's outputs to proposals, decoding included. The floor reads the logits once.

Both sides get the outputs as rows; torchvision's copy of them from maps into rows is not counted.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.rpn import RegionProposalNetwork

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import Head, head

IMAGES = 2
NUMBERS = {"pre_nms_top_n": 1000, "post_nms_top_n": 1000, "nms_thresh": 0.7}


def bench_two_images(beside: Beside) -> None:
    quick = beside.run.quick
    h = head(IMAGES, 1, 4, [(s,) for s in (32, 64, 128, 256, 512)], small=quick)
    objectness = [level.squeeze(2) for level in h.logits]
    anchors = torch.cat(h.anchors)
    height, width = (128, 128) if quick else (800, 1216)
    sizes = torch.tensor([[height, width]] * IMAGES)

    def ours() -> list[tuple[Tensor, ...]]:
        *found, _, counts = fastdet.rpn_proposals(objectness, h.deltas, anchors, sizes, **NUMBERS)
        return [tuple(x[b, :n] for x in found) for b, n in enumerate(counts.tolist())]

    numbers = {"training": 1000, "testing": 1000}
    network: Any = RegionProposalNetwork
    rpn = network(None, None, 0.7, 0.3, 256, 0.5, numbers, numbers, 0.7).eval()
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def theirs(h: Head) -> list[tuple[Tensor, Tensor]]:
        own = [torch.cat(h.anchors)] * IMAGES
        boxes = coder.decode(torch.cat(h.deltas, 1), own).view(IMAGES, -1, 4)
        logits, counts = torch.cat(h.logits, 1), [len(level) for level in h.anchors]
        found = rpn.filter_proposals(boxes, logits, [(height, width)] * IMAGES, counts)
        return list(zip(*found, strict=True))

    beside(
        Case(
            op="rpn_proposals",
            workload=f"{IMAGES} images of {height} x {width}, {len(anchors):,} anchors of 5 levels",
            sides={"fastdet": ours, "torchvision": lambda: theirs(h)},
            floor=stream(reads=sum(level.nbytes for level in objectness)),
            exact=lambda: theirs(h.double()),
            target=8.0,
        )
    )
