# SPDX-License-Identifier: BSD-3-Clause
"""The proposals of an RPN: the best anchors of each level, decoded, and suppression by level."""

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
    """The best boxes of each image, clipped to it, by falling objectness.

    Definition: torchvision's `RegionProposalNetwork.filter_proposals` after decoding. Anchors are
    selected by logit before anything is decoded, and suppressed by logit too, so that probabilities
    that round to the same number keep their order. There is no gradient.

    Args:
        objectness: for each level logits (B, A_l), in the order of its anchors; those of a
            channels_last map are read in place, other layouts are copied.
        deltas: for each level (B, A_l, 4).
        anchors: (A, 4) xyxy in pixels, the levels' one after another.
        sizes: (B, 2) int64 height and width of each image.
        pre_nms_top_n: the anchors of a level that are decoded; of equal logits the lower indices.
        post_nms_top_n: P, the most boxes of an image; the best ones are kept.
        iou_threshold: in [0, 1]; IoU above which a box suppresses another of its level.
        score_threshold: the least probability of a box.
        min_size: the least length of a side after clipping, in pixels.

    Returns:
        boxes (B, P, 4), scores (B, P), levels (B, P) int64, zero beyond counts (B,) int64; ties by
        level, then by anchor. NaN logits and boxes that are not finite are dropped. float64 for
        float64 logits or deltas, float32 for all others.

    Raises:
        ValueError: iou_threshold outside [0, 1]; no level.
        RuntimeError: wrong shape, dtype or device; a number below 0.

    Memory beyond the results: O(threads x pre_nms_top_n) and O(levels x pre_nms_top_n) an image.
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
