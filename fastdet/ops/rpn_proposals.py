# SPDX-License-Identifier: BSD-3-Clause
"""The proposals of an RPN: the best anchors of each level, decoded, and suppression by level."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdet.ops.box_coding import decode_boxes
from fastdet.ops.detection_heads import (
    check_nms_thresh,
    fake_kept_boxes,
    head_levels,
    in_box_dtype,
)
from fastdet.ops.padded_rows import take_rows
from fastdet.ops.suppression import KeptBoxes, has_sides, suppress_logits


def rpn_proposals(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float = 0.0,
    min_size: float = 1e-3,
) -> KeptBoxes:
    """The best boxes of each image, clipped to it, by falling objectness.

    Definition: torchvision's `RegionProposalNetwork.filter_proposals` after decoding. Selected by
    logit before anything is decoded; suppressed by logit, too, so that probabilities that round to
    the same number keep their order. There is no gradient.

    Args:
        objectness: for each level logits (B, A_l), in the order of its anchors; those of a
            channels_last map are read where they lie, other layouts are copied.
        deltas: for each level (B, A_l, 4).
        anchors: (A, 4) xyxy in pixels, the levels' one after another.
        sizes: (B, 2) int64 height and width of each image.
        pre_nms_top_n: the anchors of a level that are decoded; of equal logits the lower indices.
        post_nms_top_n: P, the most boxes of an image; the best ones are.
        nms_thresh: in [0, 1]; IoU above which a box suppresses another of its level.
        score_thresh: the least probability of a box.
        min_size: the least length of a side after clipping, in pixels.

    Returns:
        boxes (B, P, 4), scores (B, P), levels (B, P) int64, zero beyond counts (B,) int64; ties by
        level, then by anchor. NaN logits and boxes that are not finite are dropped. float64 for
        float64 logits or deltas, float32 for all others.

    Raises:
        ValueError: nms_thresh outside [0, 1]; no level.
        RuntimeError: wrong shape, dtype or device; a number below 0.

    Memory beyond the results: O(threads x pre_nms_top_n) and O(levels x pre_nms_top_n) an image.
    """
    check_nms_thresh("rpn_proposals", nms_thresh)
    objectness, deltas = head_levels("rpn_proposals", objectness, deltas)
    return torch.ops.fastdet.rpn_proposals(
        objectness,
        deltas,
        anchors.detach(),
        sizes,
        pre_nms_top_n,
        post_nms_top_n,
        nms_thresh,
        score_thresh,
        min_size,
    )


@torch.library.register_fake("fastdet::rpn_proposals")
def _(
    objectness: list[Tensor],
    deltas: list[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float,
    min_size: float,
) -> KeptBoxes:
    return fake_kept_boxes(objectness[0], post_nms_top_n)


def compose_rpn_proposals(
    objectness: list[Tensor],
    deltas: list[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float,
    min_size: float,
) -> KeptBoxes:
    """The op of devices without a kernel of their own: fixed shapes and no sync."""
    tops = [in_box_dtype(x).topk(min(pre_nms_top_n, x.shape[1]), dim=1) for x in objectness]
    chosen = [take_rows(x, top.indices) for x, top in zip(deltas, tops, strict=True)]
    own = anchors.split([x.shape[1] for x in objectness])
    places = [x[top.indices] for x, top in zip(own, tops, strict=True)]
    logits = torch.cat([top.values for top in tops], dim=1)  # (B, N)
    levels = [torch.full_like(top.indices, level) for level, top in enumerate(tops)]
    boxes = decode_boxes(
        in_box_dtype(torch.cat(chosen, dim=1)),
        torch.cat(places, dim=1).to(logits.dtype),
        sizes=sizes,
    )
    valid = has_sides(boxes, min_size) & (logits.sigmoid() >= score_thresh)
    valid &= logits > -torch.inf
    return suppress_logits(
        boxes, logits, torch.cat(levels, dim=1), valid, nms_thresh, post_nms_top_n
    )


torch.library.impl("fastdet::rpn_proposals", "default", compose_rpn_proposals)
