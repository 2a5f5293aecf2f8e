# SPDX-License-Identifier: BSD-3-Clause
"""From RetinaNet's outputs to detections. The floor reads the logits once.

Both sides get the outputs as rows; torchvision's copy of them from maps into rows is not counted.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder

import fastdet
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

    numbers: Any = SimpleNamespace(
        score_thresh=0.05,
        topk_candidates=1000,
        nms_thresh=0.5,
        detections_per_img=300,
        box_coder=BoxCoder((1.0, 1.0, 1.0, 1.0)),
    )

    def theirs(h: Head) -> tuple[Tensor, ...]:
        outputs = {"cls_logits": h.logits, "bbox_regression": h.deltas}
        (found,) = RetinaNet.postprocess_detections(
            numbers, outputs, [h.anchors], [(height, width)]
        )
        return found["boxes"], found["scores"], found["labels"]

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
