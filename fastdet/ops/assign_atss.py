# SPDX-License-Identifier: BSD-3-Clause
"""Adaptive training sample selection: the ground-truth box (gt) of each anchor, by statistics."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library


def assign_atss(
    anchors: Tensor,
    level_sizes: Sequence[int],
    gt_boxes: Tensor,
    gt_counts: Tensor,
    topk: int = 9,
) -> tuple[Tensor, Tensor]:
    """Assigns to each anchor a gt or -1 by adaptive training sample selection.

    The method of Zhang et al. 2020, as `ATSSAssigner` of mmdetection has it:

    1. The candidates of a gt are, on each level, the topk anchors whose centres are nearest to its
       centre (ties: the lowest anchor).
    2. The gt's threshold is the mean of the candidates' IoUs with it, plus their standard deviation
       (with n - 1).
    3. A candidate is positive if its IoU is at least the threshold, and if its centre is more than
       0.01 pixels inside the gt.
    4. An anchor that is positive for several gts gets the one with the largest IoU (ties: the
       lowest row).

    It differs from mmdetection where that has no certain answer, or none:

    - anchors at equal distances: torch.topk has no certain order. Distances are compared as their
      squares, so fewer of them are equal.
    - The mean and the deviation are summed in float64, in the order of level and distance. So
      candidates of equal IoUs all reach their threshold.
    - A single candidate has the deviation 0, where torch's is NaN and mmdetection finds no
      positive.
    - An anchor that does not overlap the gt is never positive.

    A gt takes no part if a coordinate is not finite or a side is not positive. An anchor with a
    coordinate that is not finite, or at a distance whose square overflows, is no candidate.

    Distances and IoUs are rounded once for each step to float32, or to float64 if an input is
    float64. The results are the same on every device. Memory beyond inputs and outputs: O(anchors
    + gts * topk * levels), never anchors x gts. There is no gradient.

    Args:
        anchors: (A, 4) xyxy in pixels, level by level.
        level_sizes: the number of anchors of each level; their sum is A, and there are at most 16.
        gt_boxes: (B, G, 4) xyxy in pixels.
        gt_counts: (B,) int64; only the first gt_counts[b] gts of image b are read.
        topk: how many candidates a gt has on a level, 1 .. 256.

    Returns:
        index, (B, A) int64: a row of gt_boxes, or -1; and the IoU of the anchor and its gt, (B, A),
        0 where the index is -1.

    Raises:
        RuntimeError: wrong shape, dtype or device; a number outside its range; level_sizes that do
            not fit.
    """
    return torch.ops.fastdet.assign_atss(
        anchors.detach(), list(level_sizes), gt_boxes.detach(), gt_counts, topk
    )


@library.register_fake("fastdet::assign_atss")
def _(
    anchors: Tensor, level_sizes: list[int], gt_boxes: Tensor, gt_counts: Tensor, topk: int
) -> tuple[Tensor, Tensor]:
    shape = (gt_boxes.size(0), anchors.size(0))
    wide = torch.float64 in (anchors.dtype, gt_boxes.dtype)
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape, dtype=torch.float64 if wide else torch.float32),
    )
