# SPDX-License-Identifier: BSD-3-Clause
"""Task-aligned assignment: the ground-truth box (gt) of each anchor, by score and overlap."""

import torch
from torch import Tensor

from . import library


def assign_task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    min_side: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Assigns to each anchor a gt or -1 by classification and localisation together.

    The method of TOOD (Feng et al. 2021), as `TaskAlignedAssigner` of Ultralytics has it:

    1. The candidates of a gt are the anchors whose point lies strictly inside it. A gt narrower or
       lower than min_side is widened to it, about its centre, for this step.
    2. A candidate's overlap is the complete IoU of its predicted box and the gt, at least 0. Its
       alignment is `score^alpha * overlap^beta`, with its score for the gt's label.
    3. Each gt picks the topk candidates with the largest alignments above 0 (ties: the lowest
       anchor).
    4. An anchor that several gts picked gets the gt with the largest overlap among all gts that it
       is a candidate of (ties: the lowest row).
    5. The metric of an anchor is `alignment * most_overlap / (most_aligned + 1e-9)`, with the
       largest overlap and the largest alignment among the anchors of its gt. Ultralytics multiplies
       the one-hot target by it.

    The result is that of Ultralytics 8.4 (with min_side=16, its `stride[1]`), except for

    - candidates of alignment 0: Ultralytics fills up its topk with some of them, in no certain
      order. Their target is 0, so no loss contains them, but such a pick can move another gt's
      anchor. Here no gt picks them.
    - equal alignments or overlaps: torch.topk has no certain order.
    - rounding: Ultralytics converts a gt to its centre and sides and back before step 1, and adds
      1e-7 to heights and areas.
    - its second filter `topk2`, which is not here.

    A gt takes no part if a coordinate is not finite, if a side is not positive, or if its label is
    outside 0 .. C - 1. An anchor is no candidate if its box or its point is not finite, or if its
    score for the gt's label is negative or not finite.

    All is computed in float32, or in float64 if an input is float64, with steps that round alike
    everywhere: in float32 the results are the same on every device; in float64 up to the last bit
    of the standard library's atan, and its exp and log for other exponents than the usual ones
    (alpha 0.5 or 1, with beta 6). Memory beyond inputs and outputs: O(anchors + gts * topk) for
    each image, never anchors x gts. Scores may have any strides and are not copied; those of half
    types are read as they are. There is no gradient.

    Args:
        scores: (B, A, C) probabilities.
        boxes: (B, A, 4) predicted boxes, xyxy in the unit of the gts.
        points: (A, 2) x, y of each anchor, in the unit of the gts.
        gt_labels: (B, G) int64 in 0 .. C - 1.
        gt_boxes: (B, G, 4) xyxy.
        gt_counts: (B,) int64; only the first gt_counts[b] gts of image b are read.
        topk: how many anchors a gt picks, 1 .. 256.
        alpha: exponent of the score, >= 0.
        beta: exponent of the overlap, >= 0.
        min_side: the least side of the box in which a gt has candidates, >= 0.

    Returns:
        index, (B, A) int64: a row of gt_boxes, or -1; and metric, (B, A): 0 where the index is -1.

    Raises:
        RuntimeError: wrong shape, dtype or device; a number outside its range.
    """
    return torch.ops.fastdet.assign_task_aligned(
        scores.detach(),
        boxes.detach(),
        points.detach(),
        gt_labels,
        gt_boxes.detach(),
        gt_counts,
        topk,
        alpha,
        beta,
        min_side,
    )


@library.register_fake("fastdet::assign_task_aligned")
def _(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    topk: int,
    alpha: float,
    beta: float,
    min_side: float,
) -> tuple[Tensor, Tensor]:
    shape = scores.shape[:2]
    wide = torch.float64 in (scores.dtype, boxes.dtype, points.dtype, gt_boxes.dtype)
    return (
        scores.new_empty(shape, dtype=torch.int64),
        scores.new_empty(shape, dtype=torch.float64 if wide else torch.float32),
    )
