# SPDX-License-Identifier: BSD-3-Clause
"""The regression losses of the heads, over the rows of a mask.

Rows outside the mask may hold anything, infinities and NaN included: they give no loss and no
gradient. A product with zero would not remove a NaN, nor would `where` around the loss in its
backward. So the arguments themselves are replaced.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdet.ops import (
    complete_box_iou_loss,
    decode_boxes,
    distance_box_iou_loss,
    encode_boxes,
    generalized_box_iou_loss,
)

IOU_LOSSES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}
BOX_LOSSES = ("l1", "smooth_l1", *IOU_LOSSES)

PRIOR = 0.01  # probability of an object at the start: the focal loss needs rare positives
PRIOR_LOGIT = -math.log((1 - PRIOR) / PRIOR)


def widened(values: Tensor) -> Tensor:
    """Half types as float32, in which losses are summed."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def box_regression_loss(deltas: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Smooth L1 (beta 1/9) of deltas against targets (..., 4), summed over positive rows (...).

    Beta is torchvision's, in the RPN and in fastrcnn_loss.
    """
    targets = targets.where(positive[..., None], deltas.detach())
    return F.smooth_l1_loss(deltas, targets, beta=1 / 9, reduction="sum")


def anchor_box_loss(
    kind: str, deltas: Tensor, anchors: Tensor, gt_boxes: Tensor, positive: Tensor
) -> Tensor:
    """The loss of each anchor's deltas, 0 where it is not positive.

    Args:
        kind: one of BOX_LOSSES.
        deltas: (B, A, 4).
        anchors: (A, 4) xyxy.
        gt_boxes: (B, A, 4) xyxy, each anchor's own.
        positive: (B, A) bool.

    Returns:
        (B, A). Follows torchvision's _box_loss.
    """
    if kind in IOU_LOSSES:
        return masked_iou_loss(kind, decode_boxes(deltas, anchors), gt_boxes, positive)
    targets = encode_boxes(gt_boxes, anchors).where(positive[..., None], deltas.detach())
    loss = F.l1_loss if kind == "l1" else F.smooth_l1_loss
    return loss(deltas, targets, reduction="none").sum(dim=2)


def masked_iou_loss(kind: str, boxes: Tensor, gt_boxes: Tensor, positive: Tensor) -> Tensor:
    """The IoU loss of each row of (..., 4) xyxy, 0 outside `positive` (...)."""
    unit = torch.arange(4, device=boxes.device) // 2  # 0, 0, 1, 1: made where it is needed
    unit = unit.to(boxes.dtype)
    boxes = boxes.where(positive[..., None], unit)
    gt_boxes = gt_boxes.where(positive[..., None], unit)
    return IOU_LOSSES[kind](boxes, gt_boxes).where(positive, 0.0)
