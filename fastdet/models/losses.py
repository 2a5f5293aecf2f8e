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


def masked_iou_loss(
    kind: str, boxes: Tensor, gt_boxes: Tensor, positive: Tensor, eps: float = 1e-7
) -> Tensor:
    """The IoU loss of each row of (..., 4) xyxy, 0 outside `positive` (...).

    Args:
        kind: a key of IOU_LOSSES.
        boxes, gt_boxes, positive: see above.
        eps: added to areas. The default suits boxes in pixels; for boxes in fractions give 0.
    """
    unit = torch.arange(4, device=boxes.device) // 2  # 0, 0, 1, 1
    unit = unit.to(boxes.dtype)
    boxes = boxes.where(positive[..., None], unit)
    gt_boxes = gt_boxes.where(positive[..., None], unit)
    return IOU_LOSSES[kind](boxes, gt_boxes, eps=eps).where(positive, 0.0)


def row_ious(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """The IoU (...) of row i of boxes and row i of gt_boxes, (..., 4) xyxy; 0 without a union."""
    corner = boxes[..., :2].maximum(gt_boxes[..., :2])
    sides = (boxes[..., 2:].minimum(gt_boxes[..., 2:]) - corner).clamp(min=0)
    common = sides.prod(dim=-1)
    areas = [(rows[..., 2:] - rows[..., :2]).prod(dim=-1) for rows in (boxes, gt_boxes)]
    union = areas[0] + areas[1] - common
    return common / union.where(union > 0, 1.0)


def label_targets(labels: Tensor, values: Tensor, num_classes: int) -> Tensor:
    """(..., num_classes): the value at each row's label, 0 elsewhere; labels and values (...)."""
    classes = torch.arange(num_classes, device=labels.device)
    return values[..., None].where(labels[..., None] == classes, 0.0)


def varifocal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """The varifocal loss of each logit (https://arxiv.org/abs/2008.13367, equation 2).

    Binary cross entropy, weighted by the target q where it is above 0, and by alpha * p^gamma with
    the probability p where it is 0. Unlike in the focal loss, well classified positives are not
    weighted down. The gradient goes through p^gamma, too, as in mmdetection.

    Args:
        logits: any shape.
        targets: the same shape, in [0, 1]; no gradient.
        alpha: the weight of target 0.
        gamma: exponent that reduces the loss of well classified examples of target 0.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return entropy * targets.where(targets > 0, alpha * logits.sigmoid().pow(gamma))


def quality_focal_loss(log_scores: Tensor, targets: Tensor, beta: float = 2.0) -> Tensor:
    """The quality focal loss of each score p (https://arxiv.org/abs/2006.04388, equation 3).

    Binary cross entropy times abs(target - p)^beta. The gradient goes through both factors.

    Args:
        log_scores: any shape, the natural logarithm of p; one above -1e-7 counts as -1e-7.
        targets: the same shape, in [0, 1]; no gradient.
        beta: exponent that reduces the loss of scores near their targets.
    """
    log_scores = log_scores.clamp(max=-1e-7)
    scores = log_scores.exp()
    log_rest = (-torch.expm1(log_scores)).log()
    entropy = -targets * log_scores - (1 - targets) * log_rest
    return entropy * (targets - scores).abs().pow(beta)
