# SPDX-License-Identifier: BSD-3-Clause
"""From scored boxes to the ones that are kept: what RPN, RoI heads and RetinaNet end with.

One suppression for the whole batch and no list of survivors: what is not wanted is marked and the
shapes stay.
"""

import torch
from torch import Tensor

from fastdet.models.batch import Detections, row_mask, take_rows
from fastdet.ops import nms_padded


def has_sides(boxes: Tensor, min_size: float) -> Tensor:
    """(...) bool: both sides of boxes (..., 4) are at least min_size pixels.

    Follows torchvision's remove_small_boxes.
    """
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(dim=-1)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    valid: Tensor,
    iou_threshold: float,
    max_keep: int,
) -> Detections:
    """Greedy suppression of each image's valid boxes, among equal labels.

    Args:
        boxes: (B, N, 4) xyxy.
        scores: (B, N).
        labels: (B, N) int64; boxes of different labels never meet.
        valid: (B, N) bool; the other rows may hold anything.
        iou_threshold: in [0, 1].
        max_keep: D, the number of rows of the result.

    Returns:
        Detections of D rows, highest score first, zero beyond the counts.
    """
    # NMS drops NaN scores wherever they stand, so no row has to move.
    wanted = scores.masked_fill(~valid, torch.nan)
    keep, counts = nms_padded(boxes, wanted, iou_threshold, max_keep, groups=labels)
    kept = row_mask(counts, max_keep)
    return Detections(
        boxes=take_rows(boxes, keep).where(kept[..., None], 0),
        scores=take_rows(scores, keep).where(kept, 0),
        labels=take_rows(labels, keep).where(kept, 0),
        counts=counts,
    )
