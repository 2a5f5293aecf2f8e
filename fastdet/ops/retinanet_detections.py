# SPDX-License-Identifier: BSD-3-Clause
"""RetinaNet's detections: the best classes of any anchor, decoded, and suppression by class."""

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
def retinanet_detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    score_threshold: float,
    topk_candidates: int,
    iou_threshold: float,
    detections_per_img: int,
) -> KeptBoxes:
    """The detections of each image, clipped to it, by falling score.

    Definition: torchvision's `RetinaNet.postprocess_detections`. The logits are read once and
    compared with the logit of score_threshold, which passes exactly those whose probability,
    rounded to its type, is above the threshold. Boxes are suppressed by logit too, so that
    probabilities that round to the same number keep their order. There is no gradient.

    Args:
        logits: for each level (B, A_l, C), in the order of its anchors; those of a channels_last
            map are read in place, other layouts are copied.
        deltas: for each level (B, A_l, 4).
        anchors: (A, 4) xyxy in pixels, the levels' one after another.
        sizes: (B, 2) int64 height and width of each image.
        score_threshold: the probability of a detection is above it.
        topk_candidates: the pairs of anchor and class of a level that are decoded; of equal logits
            those of lower anchors, then of lower classes.
        iou_threshold: in [0, 1]; IoU above which a box suppresses another of its class.
        detections_per_img: D, the most detections of an image; the best ones are kept.

    Returns:
        boxes (B, D, 4), scores (B, D), labels (B, D) int64 in 0 .. C - 1, zero beyond counts (B,)
        int64; ties by level, anchor, class. NaN logits and boxes that are not finite are dropped.
        float64 for float64 logits or deltas, float32 for all others.

    Raises:
        ValueError: iou_threshold outside [0, 1]; no level.
        RuntimeError: wrong shape, dtype or device; a number below 0.

    Memory beyond the results: O(threads x topk_candidates) and O(levels x topk_candidates) an
    image.
    """
    check_iou_threshold("retinanet_detections", iou_threshold)
    logits, deltas = head_levels("retinanet_detections", logits, deltas)
    return torch.ops.fastdet.retinanet_detections(
        logits,
        deltas,
        anchors.detach(),
        sizes,
        score_threshold,
        topk_candidates,
        iou_threshold,
        detections_per_img,
    )


@library.register_fake("fastdet::retinanet_detections")
def _(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    score_threshold: float,
    topk_candidates: int,
    iou_threshold: float,
    detections_per_img: int,
) -> KeptBoxes:
    return fake_kept_boxes(logits[0], detections_per_img)
