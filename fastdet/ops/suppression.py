# SPDX-License-Identifier: BSD-3-Clause
"""From scored boxes to the ones that are kept, composed of torch's ops and `nms_padded`.

One suppression for the whole batch and no list of survivors: what is not wanted is marked and the
shapes stay.
"""

import torch
from torch import Tensor

from fastdet.ops.nms import nms_padded
from fastdet.ops.padded_rows import row_mask, take_rows

# boxes (B, D, 4), scores (B, D), labels (B, D) and counts (B,): the fields of models.Detections.
KeptBoxes = tuple[Tensor, Tensor, Tensor, Tensor]


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
) -> KeptBoxes:
    """Greedy suppression of each image's valid boxes, among equal labels.

    Args:
        boxes: (B, N, 4) xyxy.
        scores: (B, N).
        labels: (B, N) int64; boxes of different labels never meet.
        valid: (B, N) bool; the other rows may hold anything.
        iou_threshold: in [0, 1].
        max_keep: D, the number of rows of the result.

    Returns:
        D rows of boxes, scores and labels, highest score first, zero beyond the counts.
    """
    if boxes.shape[1] == 0:  # there must be a row to take
        boxes, scores, labels, valid = (
            x.new_zeros((x.shape[0], 1, *x.shape[2:])) for x in (boxes, scores, labels, valid)
        )
    # NMS drops NaN scores wherever they stand, so no row has to move.
    wanted = scores.masked_fill(~valid, torch.nan)
    keep, counts = nms_padded(boxes, wanted, iou_threshold, max_keep, groups=labels)
    kept = row_mask(counts, max_keep)
    return (
        take_rows(boxes, keep).where(kept[..., None], 0),
        take_rows(scores, keep).where(kept, 0),
        take_rows(labels, keep).where(kept, 0),
        counts,
    )


def suppress_logits(
    boxes: Tensor,
    logits: Tensor,
    labels: Tensor,
    valid: Tensor,
    iou_threshold: float,
    max_keep: int,
) -> KeptBoxes:
    """`suppress` by logits, whose order no rounding changes; the scores are their sigmoids."""
    boxes, logits, labels, counts = suppress(boxes, logits, labels, valid, iou_threshold, max_keep)
    scores = logits.sigmoid().where(row_mask(counts, max_keep), 0)
    return boxes, scores, labels, counts
