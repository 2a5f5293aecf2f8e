# SPDX-License-Identifier: BSD-3-Clause
"""A two-stage detector's detections: the classes of its proposals, suppressed class by class."""

import torch
from torch import Tensor

from fastdet.ops import library
from fastdet.ops.box_coding import Weights, check_weights
from fastdet.ops.detection_heads import KeptBoxes, check_iou_threshold, fake_kept_boxes
from fastdet.renamed import renamed_keywords


@renamed_keywords(
    torch.compiler.is_compiling, nms_thresh="iou_threshold", score_thresh="score_threshold"
)
def roi_detections(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    counts: Tensor | None,
    sizes: Tensor,
    weights: Weights,
    score_threshold: float,
    iou_threshold: float,
    detections_per_img: int,
    min_size: float = 1e-2,
) -> KeptBoxes:
    """The detections of each image, clipped to it, by falling score.

    Definition: torchvision's `RoIHeads.postprocess_detections`. A proposal gives a box for each
    class whose softmax is above the threshold; only these are decoded. There is no gradient.

    Args:
        logits: (B, K, C) of each proposal; class 0 is background and gives no box.
        deltas: (B, K, C, 4).
        proposals: (B, K, 4) xyxy in pixels.
        counts: (B,) int64; proposals of an image from its count on are not read. None: all count.
        sizes: (B, 2) int64 height and width of each image.
        weights: what dx, dy, dw, dh are divided by; > 0.
        score_threshold: the probability of a detection is above it.
        iou_threshold: in [0, 1]; IoU above which a box suppresses another of its class.
        detections_per_img: D, the most detections of an image; the best ones are kept.
        min_size: the least length of a side after clipping, in pixels.

    Returns:
        boxes (B, D, 4), scores (B, D), labels (B, D) int64 in 1 .. C - 1, zero beyond counts (B,)
        int64; ties by proposal, then by class. Proposals of NaN logits and boxes that are not
        finite are dropped. float64 for float64 logits or deltas, float32 for all others.

    Raises:
        ValueError: iou_threshold outside [0, 1]; a weight that is not positive and finite.
        RuntimeError: wrong shape, dtype or device; detections_per_img below 0.

    Memory beyond the results: O(boxes above the threshold).
    """
    check_iou_threshold("roi_detections", iou_threshold)
    check_weights(weights)
    dtype = torch.promote_types(logits.dtype, deltas.dtype)
    return torch.ops.fastdet.roi_detections(
        logits.detach().to(dtype),
        deltas.detach().to(dtype),
        proposals.detach(),
        counts,
        sizes,
        *weights,
        score_threshold,
        iou_threshold,
        detections_per_img,
        min_size,
    )


@library.register_fake("fastdet::roi_detections")
def _(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    counts: Tensor | None,
    sizes: Tensor,
    wx: float,
    wy: float,
    ww: float,
    wh: float,
    score_threshold: float,
    iou_threshold: float,
    detections_per_img: int,
    min_size: float,
) -> KeptBoxes:
    return fake_kept_boxes(logits, detections_per_img)
