# SPDX-License-Identifier: BSD-3-Clause
"""From RetinaNet's outputs to detections. The floor reads the logits once.

Both sides get the outputs as rows; torchvision's copy of them from maps into rows is not counted.
"""

import torch
from torch import Tensor

import fastdet
from benchmarks import torchvision_heads
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import RETINANET_SIZES, Head, head

CLASSES = 81  # torchvision's, background included


def bench_one_image(beside: Beside) -> None:
    quick = beside.run.quick
    h = head(1, CLASSES, 8, RETINANET_SIZES, small=quick)
    anchors = torch.cat(h.anchors)
    height, width = (128, 128) if quick else (800, 1216)
    sizes = torch.tensor([[height, width]])

    def ours() -> tuple[Tensor, ...]:
        *found, counts = fastdet.retinanet_detections(
            h.logits, h.deltas, anchors, sizes, 0.05, 1000, 0.5, 300
        )
        return tuple(x[0, : int(counts)] for x in found)

    def theirs(outputs: Head) -> tuple[Tensor, ...]:
        return torchvision_heads.retinanet_detections(outputs, (height, width))[0]

    beside(
        Case(
            op="retinanet_detections",
            workload=f"{height} x {width}, {len(anchors):,} anchors of 5 levels, {CLASSES} classes",
            sides={"fastdet": ours, "torchvision": lambda: theirs(h)},
            floor=stream(reads=sum(level.nbytes for level in h.logits)),
            exact=lambda: theirs(h.double()),
            target=10.0,
        )
    )
