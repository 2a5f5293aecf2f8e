# SPDX-License-Identifier: BSD-3-Clause
"""Assigns a ground-truth box (gt) to each anchor of a padded batch. No IoU matrix is stored."""

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
    """Assigns to each anchor a gt, or -1 (background), or -2 (ignored).

    An anchor's best gt is the one with the largest IoU (ties: the lowest row). If this IoU is
    >= high, the anchor gets its best gt. If it is in [low, high), the anchor gets -2. If it is
    below low, the anchor gets -1. Then low-quality matches are added. A candidate is an anchor
    whose IoU with some gt is the largest that this gt has with any anchor (ties included).

    - "anchor_best", the rule of torchvision's `Matcher` and of detectron2: each candidate gets its
      own best gt. As in these libraries, this is also done at IoU 0: if a gt overlaps no anchor,
      every anchor is a candidate, and each gets its own best gt. Do not count such a gt, or use
      "gt_best".
    - "gt_best", mmdetection's rule with `gt_max_assign_all`: each candidate gets the gt that made
      it a candidate (if several: the highest row), if their IoU is above 0.
    - "none": no low-quality matches.

    A gt with a coordinate that is not finite matches no anchor. An anchor with a coordinate that is
    not finite gets -2 and IoU 0. IoUs are rounded once, to float64 for float64 boxes and else to
    float32. They are compared with the thresholds rounded to the same type, as in torch. Memory
    beyond inputs and outputs: O(threads x gts) on the CPU, O(gts) on CUDA.

    Args:
        anchors: (A, 4) for all images, or (B, A, 4), xyxy in pixels.
        gt_boxes: (B, G, 4) xyxy in pixels.
        gt_counts: (B,) int64; only the first gt_counts[b] gts of image b are read.
        high: an anchor whose best IoU is >= high is matched.
        low: an anchor whose best IoU is < low is background; low <= high.
        low_quality: "anchor_best", "gt_best" or "none".

    Returns:
        index, (B, A) int64: a row of gt_boxes, -1 or -2; and the best IoU of each anchor, (B, A),
        0 where there is no gt. The results are the same on every device.

    Raises:
        ValueError: low is above high; unknown low_quality.
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
