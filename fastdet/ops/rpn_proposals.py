# SPDX-License-Identifier: BSD-3-Clause
"""The proposals of an RPN: select each level's best anchors, decode them, NMS per level."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdet.ops import library
from fastdet.ops.detection_heads import (
    KeptBoxes,
    check_iou_threshold,
    fake_kept_boxes,
    head_levels,
)
from fastdet.renamed import renamed_keywords


@renamed_keywords(
    torch.compiler.is_compiling, nms_thresh="iou_threshold", score_thresh="score_threshold"
)
def rpn_proposals(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float,
    score_threshold: float = 0.0,
    min_size: float = 1e-3,
) -> KeptBoxes:
    """The best boxes of each image, clipped to the image, highest objectness first.

    Definition: torchvision's decoding and `RegionProposalNetwork.filter_proposals`. The best
    anchors are selected by logit, and only these are decoded. NMS also orders boxes by logit, so
    the order is defined where probabilities round to the same number. There is no gradient.

    Args:
        objectness: for each level logits (B, A_l), in the order of its anchors. Logits of a
            channels_last map are read in place, other layouts are copied.
        deltas: for each level (B, A_l, 4).
        anchors: (A, 4) xyxy in pixels, level after level.
        sizes: (B, 2) int64 height and width of each image.
        pre_nms_top_n: maximum number of anchors of a level that are decoded; ties: lower indices.
        post_nms_top_n: P, maximum number of boxes of an image; the best are kept.
        iou_threshold: in [0, 1]; a box suppresses boxes of its level if their IoU is above this.
        score_threshold: minimum probability of a box.
        min_size: minimum length of both sides after clipping, in pixels.

    Returns:
        boxes (B, P, 4), scores (B, P), levels (B, P) int64 and counts (B,) int64. Rows from an
        image's count on are zero. Ties: by level, then by anchor. NaN logits and boxes that are not
        finite are dropped. float64 for float64 logits or deltas, else float32.

    Raises:
        ValueError: iou_threshold outside [0, 1]; no level.
        RuntimeError: wrong shape, dtype or device; pre_nms_top_n or post_nms_top_n below 0.

    Memory beyond the results: O(threads x pre_nms_top_n), and O(levels x pre_nms_top_n) for each
    image.
    """
    check_iou_threshold("rpn_proposals", iou_threshold)
    objectness, deltas = head_levels("rpn_proposals", objectness, deltas)
    return torch.ops.fastdet.rpn_proposals(
        objectness,
        deltas,
        anchors.detach(),
        sizes,
        pre_nms_top_n,
        post_nms_top_n,
        iou_threshold,
        score_threshold,
        min_size,
    )


@library.register_fake("fastdet::rpn_proposals")
def _(
    objectness: list[Tensor],
    deltas: list[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float,
    score_threshold: float,
    min_size: float,
) -> KeptBoxes:
    return fake_kept_boxes(objectness[0], post_nms_top_n)
