# SPDX-License-Identifier: BSD-3-Clause
"""SimOTA: the ground-truth box (gt) of each anchor of a dense detector, by the least cost."""

import torch
from torch import Tensor

from . import library


def assign_simota(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    center_radius: float = 2.5,
    candidate_topk: int = 10,
    cls_weight: float = 1.0,
    iou_weight: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Assigns to each anchor a gt or -1 by the cost of its prediction.

    The method of YOLOX (Ge et al. 2021), as `SimOTAAssigner` of mmdetection has it:

    1. The candidates of an image are the anchors whose point lies strictly inside a gt, or nearer
       than center_radius strides to the centre of one, in x and in y.
    2. The cost of a candidate for a gt is `cls_weight * bce - iou_weight * log(IoU + 1e-7)`. Here
       bce is the binary cross entropy of all its scores, with the gt's label as the target; no
       logarithm of it counts more than 100.
    3. A gt picks as many candidates as the sum of the image's candidate_topk largest IoUs with it,
       rounded down, and at least one.
    4. It picks those of least cost (ties: the lowest anchor), first among the candidates that are
       central to it (inside it and near its centre), then among the others.
    5. An anchor that several gts picked gets the gt of least cost, first among those that it is
       central to, then among all (ties: the lowest row).

    The others come after the central ones without a number: mmdetection adds 100,000 to their cost,
    which leaves them two decimals in float32. For the rest the results are those of mmdetection,
    but for ties and rounding. YOLOX's own code differs in details from version to version.

    A gt takes no part if a coordinate is not finite, if a side is not positive, or if its label is
    outside 0 .. C - 1. An anchor is no candidate if its box, its point or its stride is not finite,
    or if a score is outside [0, 1].

    Costs are computed in float32, or in float64 if an input is float64, with steps that round alike
    everywhere; sums over classes are products in float64 and one logarithm. In float32 the results
    are the same on every device; in float64 up to the last bit of the standard library's log.
    Memory beyond inputs and outputs: O(anchors + gts * candidate_topk) for each image, never
    anchors x gts. There is no gradient.

    Args:
        scores: (B, A, C) probabilities: the class's times that an object is there, or as YOLOX the
            root of that.
        boxes: (B, A, 4) predicted boxes, xyxy in pixels.
        points: (A, 2) x, y of each anchor, in pixels.
        strides: (A,) in pixels.
        gt_labels: (B, G) int64 in 0 .. C - 1.
        gt_boxes: (B, G, 4) xyxy in pixels.
        gt_counts: (B,) int64; only the first gt_counts[b] gts of image b are read.
        center_radius: in strides, >= 0.
        candidate_topk: the number of IoUs that a gt sums, 1 .. 256.
        cls_weight: weight of the class cost.
        iou_weight: weight of the IoU cost.

    Returns:
        index, (B, A) int64: a row of gt_boxes, or -1; and the IoU of the anchor's box and its gt,
        (B, A), 0 where the index is -1.

    Raises:
        RuntimeError: wrong shape, dtype or device; a number outside its range.
    """
    return torch.ops.fastdet.assign_simota(
        scores.detach(),
        boxes.detach(),
        points.detach(),
        strides.detach(),
        gt_labels,
        gt_boxes.detach(),
        gt_counts,
        center_radius,
        candidate_topk,
        cls_weight,
        iou_weight,
    )


@library.register_fake("fastdet::assign_simota")
def _(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    center_radius: float,
    candidate_topk: int,
    cls_weight: float,
    iou_weight: float,
) -> tuple[Tensor, Tensor]:
    shape = scores.shape[:2]
    floats = (scores, boxes, points, strides, gt_boxes)
    wide = any(tensor.dtype == torch.float64 for tensor in floats)
    return (
        scores.new_empty(shape, dtype=torch.int64),
        scores.new_empty(shape, dtype=torch.float64 if wide else torch.float32),
    )
