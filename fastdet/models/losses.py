# SPDX-License-Identifier: BSD-3-Clause
"""The box regression losses of the heads, over the rows that a mask selects.

Rows outside the mask may have any values, also infinities and NaN. They give no loss and no
gradient. Multiplying the loss by zero does not remove a NaN, and `where` on the loss does not
remove it from the gradient. Therefore the inputs of these rows are replaced.
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

PRIOR = 0.01  # initial probability of an object, low because the focal loss has few positives
PRIOR_LOGIT = -math.log((1 - PRIOR) / PRIOR)


def widened(values: Tensor) -> Tensor:
    """Converts half types to float32, in which losses are summed."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def box_regression_loss(deltas: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Smooth L1 (beta 1/9) of deltas against targets (..., 4), summed over positive rows (...).

    Beta is that of torchvision's RPN and fastrcnn_loss.
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
        gt_boxes: (B, A, 4) xyxy, the box that is assigned to each anchor.
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
    unit = torch.arange(4, device=boxes.device) // 2  # 0, 0, 1, 1
    unit = unit.to(boxes.dtype)
    boxes = boxes.where(positive[..., None], unit)
    gt_boxes = gt_boxes.where(positive[..., None], unit)
    return IOU_LOSSES[kind](boxes, gt_boxes).where(positive, 0.0)
