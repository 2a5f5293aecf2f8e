# SPDX-License-Identifier: BSD-3-Clause
"""The detections of a two-stage detector: classify and decode its proposals, NMS per class."""

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
    """The detections of each image, clipped to the image, highest score first.

    Definition: torchvision's `RoIHeads.postprocess_detections`. A proposal gives one box for each
    class whose softmax probability is above the threshold. Only these boxes are decoded. There is
    no gradient.

    Args:
        logits: (B, K, C) of each proposal; class 0 is background and gives no box.
        deltas: (B, K, C, 4).
        proposals: (B, K, 4) xyxy in pixels.
        counts: (B,) int64; only the first counts[b] proposals of image b are read. None: all K.
        sizes: (B, 2) int64 height and width of each image.
        weights: factors that dx, dy, dw, dh are divided by; > 0.
        score_threshold: a detection's probability is above this.
        iou_threshold: in [0, 1]; a box suppresses boxes of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image; the best are kept.
        min_size: minimum length of both sides after clipping, in pixels.

    Returns:
        boxes (B, D, 4), scores (B, D), labels (B, D) int64 in 1 .. C - 1 and counts (B,) int64.
        Rows from an image's count on are zero. Ties: by proposal, then by class. Proposals with NaN
        logits and boxes that are not finite are dropped. float64 for float64 logits or deltas, else
        float32.

    Raises:
        ValueError: iou_threshold outside [0, 1]; a weight that is not positive and finite.
        RuntimeError: wrong shape, dtype or device; detections_per_img below 0.

    Memory beyond the results: O(number of boxes above the threshold).
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
