# SPDX-License-Identifier: BSD-3-Clause
"""The ground-truth box (gt) of each anchor of a padded batch, without an IoU matrix in memory."""

import torch
from torch import Tensor

from . import library

LOW_QUALITY = ("anchor_best", "gt_best", "none")


def match_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    high: float,
    low: float,
    low_quality: str = "anchor_best",
) -> tuple[Tensor, Tensor]:
    """The gt of each anchor, or -1 for background, or -2 for neither.

    An anchor's best gt is that of the largest IoU (ties: the lowest row). The anchor gets it where
    that IoU is >= high, -2 where it is in [low, high), and -1 below. Low-quality matches are
    added:

    - "anchor_best", the rule of torchvision's `Matcher` and of detectron2: an anchor whose IoU with
      some gt is the largest that this gt has with any anchor (ties included) gets its own best gt.
      This holds at IoU 0 too, as it does there: a gt that overlaps no anchor gives every anchor
      that does not overlap it its own best gt. Leave such a gt out of the count, or use "gt_best".
    - "gt_best", mmdetection's rule with `gt_max_assign_all`: such an anchor gets that gt (of
      several: the highest row), where the IoU is above 0.
    - "none".

    A gt with a coordinate that is not finite matches nothing; such an anchor gets -2 and IoU 0.
    IoUs are rounded once, in float64 for float64 boxes and in float32 for all others, and compared
    with the thresholds rounded to that type, as torch compares. Beside inputs and outputs it takes
    O(threads x gts) memory on the CPU, O(gts) on CUDA.

    Args:
        anchors: (A, 4) for all images, or (B, A, 4), xyxy in pixels.
        gt_boxes: (B, G, 4) xyxy in pixels.
        gt_counts: (B,) int64; gts of an image from its count on are not read.
        high: the IoU from which on an anchor is matched.
        low: the IoU below which an anchor is background; <= high.
        low_quality: "anchor_best", "gt_best" or "none".

    Returns:
        index, (B, A) int64: a row of gt_boxes, -1 or -2; and the best IoU of each anchor, (B, A),
        0 where there is no gt. The same on every device.

    Raises:
        ValueError: low above high; an unknown low_quality.
        RuntimeError: wrong shape, dtype or device.
    """
    if not low <= high:
        raise ValueError(f"low: expected a number <= high = {high}, got {low}")
    if low_quality not in LOW_QUALITY:
        raise ValueError(f"low_quality: expected one of {LOW_QUALITY}, got {low_quality!r}")
    return torch.ops.fastdet.match_anchors(
        anchors.detach(), gt_boxes.detach(), gt_counts, high, low, low_quality
    )


@library.register_fake("fastdet::match_anchors")
def _(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    high: float,
    low: float,
    low_quality: str,
) -> tuple[Tensor, Tensor]:
    shape = (gt_boxes.size(0), anchors.size(-2))
    wide = torch.float64 in (anchors.dtype, gt_boxes.dtype)
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape, dtype=torch.float64 if wide else torch.float32),
    )
