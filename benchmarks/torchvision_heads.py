# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's post-processing and matching as functions of tensors: the peers of several suites.

Its methods are called on simple objects that hold the settings they read.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from benchmarks.workloads import Head

UNIT_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

RPN_NUMBERS = {"pre_nms_top_n": 1000, "post_nms_top_n": 1000, "iou_threshold": 0.7}


def rpn_proposals(h: Head, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Boxes and scores of each image, with RPN_NUMBERS, from outputs that are rows already."""
    network: Any = RegionProposalNetwork
    top = {"training": 1000, "testing": 1000}
    rpn = network(None, None, 0.7, 0.3, 256, 0.5, top, top, RPN_NUMBERS["iou_threshold"]).eval()
    images = len(h.logits[0])
    own = [torch.cat(h.anchors)] * images
    boxes = BoxCoder(UNIT_WEIGHTS).decode(torch.cat(h.deltas, 1), own).view(images, -1, 4)
    logits, counts = torch.cat(h.logits, 1), [len(level) for level in h.anchors]
    found = rpn.filter_proposals(boxes, logits, [size] * images, counts)
    return list(zip(*found, strict=True))


def retinanet_detections(h: Head, size: tuple[int, int]) -> list[tuple[Tensor, ...]]:
    """Boxes, scores and labels of each image, with the numbers of torchvision's constructor."""
    numbers: Any = SimpleNamespace(
        score_thresh=0.05,
        topk_candidates=1000,
        nms_thresh=0.5,
        detections_per_img=300,
        box_coder=BoxCoder(UNIT_WEIGHTS),
    )
    outputs = {"cls_logits": h.logits, "bbox_regression": h.deltas}
    images = len(h.logits[0])
    found = RetinaNet.postprocess_detections(
        numbers, outputs, [h.anchors] * images, [size] * images
    )
    return [(one["boxes"], one["scores"], one["labels"]) for one in found]


def roi_detections(
    logits: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int]
) -> list[list[Tensor]]:
    """Boxes, scores and labels of one image's (K, C), (K, C, 4) and (K, 4)."""
    numbers: Any = SimpleNamespace(
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        box_coder=BoxCoder(BOX_HEAD_WEIGHTS),
    )
    found = RoIHeads.postprocess_detections(numbers, logits, deltas.flatten(1), [proposals], [size])
    return list(found)


def match_anchors(anchors: Tensor, gt_boxes: Tensor, high: float, low: float) -> Tensor:
    """The (A,) matches of one image, low-quality ones allowed."""
    matcher = Matcher(high, low, allow_low_quality_matches=True)
    return matcher(torchvision.ops.box_iou(gt_boxes, anchors))
