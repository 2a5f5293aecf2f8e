# SPDX-License-Identifier: BSD-3-Clause
"""RetinaNet's detections: select the best (anchor, class) pairs, decode them, NMS per class."""

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
    """The detections of each image, clipped to the image, highest score first.

    Definition: torchvision's `RetinaNet.postprocess_detections`. The logits are read once. They are
    compared with the logit of score_threshold: a logit passes exactly if its probability, rounded
    to its type, is above the threshold. NMS also orders boxes by logit, so the order is defined
    where probabilities round to the same number. There is no gradient.

    Args:
        logits: for each level (B, A_l, C), in the order of its anchors. Logits of a channels_last
            map are read in place, other layouts are copied.
        deltas: for each level (B, A_l, 4).
        anchors: (A, 4) xyxy in pixels, level after level.
        sizes: (B, 2) int64 height and width of each image.
        score_threshold: a detection's probability is above this.
        topk_candidates: maximum number of (anchor, class) pairs of a level that are decoded; ties:
            lower anchors first, then lower classes.
        iou_threshold: in [0, 1]; a box suppresses boxes of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image; the best are kept.

    Returns:
        boxes (B, D, 4), scores (B, D), labels (B, D) int64 in 0 .. C - 1 and counts (B,) int64.
        Rows from an image's count on are zero. Ties: by level, anchor, class. NaN logits and boxes
        that are not finite are dropped. float64 for float64 logits or deltas, else float32.

    Raises:
        ValueError: iou_threshold outside [0, 1]; no level.
        RuntimeError: wrong shape, dtype or device; topk_candidates or detections_per_img below 0.

    Memory beyond the results: O(threads x topk_candidates), and O(levels x topk_candidates) for
    each image.
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
