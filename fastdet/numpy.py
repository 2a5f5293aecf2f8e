# SPDX-License-Identifier: BSD-3-Clause
"""The box operators for NumPy arrays: for code that runs its model without torch.

Functions that `fastdet.ops` has too take the same arguments, run the same loops and return the same
bits; only the results of `soft_nms` have no padding here. `multiclass_nms` exists only here.
Importing this module does not import torch.
The functions run on the calling thread and release the GIL, so Python threads can run them at the
same time.

C-contiguous float32 and float64 arrays are read in place, also read-only arrays. Arrays with other
layouts and byte orders are copied. float16 is computed in float32; so are integer boxes of an IoU.
Other types raise a TypeError. If arguments have different types, the widest is used; scores are
converted to the type of boxes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdet import _native
from fastdet.renamed import renamed_keywords

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Weights = tuple[float, float, float, float]

_FORMATS = ("xyxy", "xywh", "cxcywh")
_LOW_QUALITY = {
    "anchor_best": _native.LowQuality.anchor_best,
    "gt_best": _native.LowQuality.gt_best,
    "none": _native.LowQuality.none,
}
_CLASS_COSTS = {"focal": _native.ClassCost.focal, "softmax": _native.ClassCost.softmax}
_CONF_TYPES = {
    "avg": _native.ConfType.avg,
    "max": _native.ConfType.max,
    "box_and_model_avg": _native.ConfType.box_and_model_avg,
    "absent_model_aware_avg": _native.ConfType.absent_model_aware_avg,
}
_OVERLAP_METRICS = {"iou": _native.OverlapMetric.iou, "ios": _native.OverlapMetric.ios}
_SOFT_NMS_METHODS = {
    "linear": _native.SoftNmsMethod.linear,
    "gaussian": _native.SoftNmsMethod.gaussian,
}


class _Type(NamedTuple):
    """The dtype of the computation and the dtype of the result."""

    maths: type[np.float32] | type[np.float64]
    result: type[np.floating[Any]]


def nms(boxes: Floats, scores: Floats, iou_threshold: float) -> Ints:
    """Indices of the boxes that survive greedy suppression.

    Definition: `fastdet.ops.nms`. A box with a NaN score or a coordinate that is not finite is
    dropped.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,).
        iou_threshold: in [0, 1]; a box is suppressed if its IoU with a kept box is above this.

    Returns:
        (K,) int64, highest score first; ties keep input order.

    Raises:
        ValueError: wrong shape; iou_threshold outside [0, 1].
        TypeError: not an array, or a wrong dtype.
    """
    _check_iou_threshold(iou_threshold)
    maths = _type_of(boxes=boxes).maths
    return _native.nms(_dense(boxes, maths), _floats("scores", scores, maths), None, iou_threshold)


def batched_nms(boxes: Floats, scores: Floats, idxs: Ints, iou_threshold: float) -> Ints:
    """`nms` for each id separately: a box suppresses only boxes with the same id.

    Definition: `fastdet.ops.batched_nms`.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,).
        idxs: (N,) integer ids, of classes or levels for example.
        iou_threshold: in [0, 1].

    Returns:
        (K,) int64 over all ids, highest score first; ties keep input order.

    Raises:
        ValueError: wrong shape; iou_threshold outside [0, 1].
        TypeError: not an array, or a wrong dtype.
    """
    _check_iou_threshold(iou_threshold)
    maths = _type_of(boxes=boxes).maths
    return _native.nms(
        _dense(boxes, maths),
        _floats("scores", scores, maths),
        _integers("idxs", idxs),
        iou_threshold,
    )


def nmm(
    boxes: Floats,
    scores: Floats,
    labels: Ints | None = None,
    threshold: float = 0.5,
    metric: str = "iou",
    transitive: bool = False,
) -> tuple[Ints, Floats]:
    """Merges overlapping boxes, as after a detector has run on the tiles of a large image.

    Definition: `fastdet.ops.nmm`, which explains the rules.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,).
        labels: (N,) integers; only boxes of the same label are merged. None: all boxes.
        threshold: in (0, 1]; boxes match if their overlap is at least this.
        metric: "iou": intersection over union; "ios": over the smaller box.
        transitive: a box may also join a group through a merged box.

    Returns:
        index, (N,) int64: the row of the kept box that box i is merged into, i if it is kept, -1 if
        it is dropped; and merged, (N, 4) in the dtype of boxes: in a kept row the smallest box that
        encloses its group, in other rows the box itself.

    Raises:
        ValueError: wrong shape; threshold outside (0, 1]; unknown metric.
        TypeError: not an array, or a wrong dtype.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number in (0, 1], got {threshold}")
    overlap = _one_of("metric", metric, _OVERLAP_METRICS)
    floats = _type_of(boxes=boxes)
    index, merged = _native.nmm(
        _dense(boxes, floats.maths),
        _floats("scores", scores, floats.maths),
        None if labels is None else _integers("labels", labels),
        threshold,
        overlap,
        transitive,
    )
    return index, merged.astype(floats.result, copy=False)


@renamed_keywords(min_score="score_threshold")
def soft_nms(
    boxes: Floats,
    scores: Floats,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    method: str = "linear",
    labels: Ints | None = None,
) -> tuple[Ints, Floats]:
    """Soft-NMS: lowers the scores of overlapping boxes instead of removing the boxes.

    Repeat until no box is left: pick the box with the highest score, and multiply the score of
    every other box of its label by a weight that depends on its IoU with the picked box.
    Definition: "Soft-NMS" by Bodla et al. (https://arxiv.org/abs/1704.04503). The weight is:

    - "linear": 1 - IoU if the IoU is at least iou_threshold, else 1.
    - "gaussian": exp(-IoU^2 / sigma).

    A box with a score or a coordinate that is not finite is dropped.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,).
        iou_threshold: in [0, 1]; only for "linear".
        sigma: > 0; only for "gaussian".
        score_threshold: >= 0; a box is removed if its score falls below this.
        method: "linear" or "gaussian".
        labels: (N,) integers; a box lowers only the scores of boxes of its label. None: of all.

    Returns:
        (K,) int64 indices in the order of picking (ties: the lowest index first); and the score of
        each box when it was picked, (K,), in descending order.

    Raises:
        ValueError: wrong shape; a number outside its range; an unknown method.
        TypeError: not an array, or a wrong dtype.
    """
    _check_iou_threshold(iou_threshold)
    if not (0 < sigma < math.inf):
        raise ValueError(f"sigma: expected a number > 0, got {sigma}")
    if not score_threshold >= 0:
        raise ValueError(f"score_threshold: expected a number >= 0, got {score_threshold}")
    rule = _one_of("method", method, _SOFT_NMS_METHODS)
    maths = _type_of(boxes=boxes).maths
    boxes, scores = _dense(boxes, maths), _floats("scores", scores, maths)
    ids = None if labels is None else _integers("labels", labels)
    return _native.soft_nms(boxes, scores, ids, iou_threshold, sigma, score_threshold, rule)


def weighted_boxes_fusion(
    boxes: Floats,
    scores: Floats,
    labels: Ints,
    models: Ints,
    weights: Sequence[float],
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> tuple[Floats, Floats, Ints]:
    """Fuses the boxes of several models into means that are weighted by their scores.

    Definition: `fastdet.ops.weighted_boxes_fusion`, which explains the rules.

    Args:
        boxes: (N, 4) xyxy, the boxes of all models.
        scores: (N,).
        labels: (N,) integers; only boxes of the same label are fused.
        models: (N,) integers, the model that each box comes from: an index into weights.
        weights: of the models, one each; > 0.
        iou_threshold: in [0, 1]; a box joins the fused box that it overlaps most if their IoU is
            above this.
        score_threshold: a box takes part if its score is at least this.
        conf_type: "avg", "max", "box_and_model_avg" or "absent_model_aware_avg".
        allows_overflow: for "avg", whether a score may be above 1.

    Returns:
        boxes (K, 4) and scores (K,), float64 if either argument is float64, else float32; and
        labels (K,) int64, highest score first; ties: the fused box whose first member comes first
        in the input.

    Raises:
        ValueError: wrong shape; iou_threshold outside [0, 1]; wrong weights; a model without a
            weight; unknown conf_type.
        TypeError: not an array, or a wrong dtype.
    """
    _check_iou_threshold(iou_threshold)
    _check_model_weights(weights)
    rule = _one_of("conf_type", conf_type, _CONF_TYPES)
    maths = _type_of(boxes=boxes, scores=scores).maths
    return _native.weighted_boxes_fusion(
        _dense(boxes, maths),
        _dense(scores, maths),
        _integers("labels", labels),
        _integers("models", models),
        list(weights),
        iou_threshold,
        score_threshold,
        rule,
        allows_overflow,
    )


def box_iou(boxes1: NDArray[Any], boxes2: NDArray[Any], fmt: str = "xyxy") -> Floats:
    """Intersection over union of every pair of boxes.

    Definition: `fastdet.ops.box_iou`; where the union is not positive the IoU is 0, never NaN.
    Integers are computed in float32.

    Args:
        boxes1: (N, 4) or (B, N, 4) in pixels.
        boxes2: (M, 4) or (B, M, 4).
        fmt: format of both: "xyxy", "xywh" (upper left corner, width, height) or "cxcywh" (centre,
            width, height).

    Returns:
        (N, M) or (B, N, M), in [0, 1]; float64 if either argument is float64, else float32.

    Raises:
        ValueError: wrong shape; unknown fmt.
        TypeError: not an array, or a wrong dtype.
    """
    if fmt not in _FORMATS:
        raise ValueError(f"fmt: expected one of {_FORMATS}, got {fmt!r}")
    return _native.box_iou(*_corner_pair(boxes1, boxes2, fmt), 0.0)


def generalized_box_iou(boxes1: NDArray[Any], boxes2: NDArray[Any]) -> Floats:
    """Generalized IoU of every pair: the IoU minus the uncovered share of the enclosing box.

    Definition: `fastdet.ops.generalized_box_iou`. Arguments and errors as in `box_iou`, for
    xyxy.

    Returns:
        (N, M) or (B, N, M), in [-1, 1]; float64 if either argument is float64, else float32.
    """
    return _native.generalized_box_iou(*_corner_pair(boxes1, boxes2), 0.0)


def distance_box_iou(boxes1: NDArray[Any], boxes2: NDArray[Any], eps: float = 1e-7) -> Floats:
    """Distance IoU of every pair: the IoU minus the squared, normalised distance of the centres.

    Definition: `fastdet.ops.distance_box_iou`. Arguments and errors as in `box_iou`, for xyxy;
    eps is added to the squared diagonal.

    Returns:
        (N, M) or (B, N, M), in [-1, 1]; float64 if either argument is float64, else float32.
    """
    _check_eps(eps)
    return _native.distance_box_iou(*_corner_pair(boxes1, boxes2), eps)


def complete_box_iou(boxes1: NDArray[Any], boxes2: NDArray[Any], eps: float = 1e-7) -> Floats:
    """Complete IoU of every pair: the distance IoU minus a term for different aspect ratios.

    Definition: `fastdet.ops.complete_box_iou`. Arguments and errors as in `box_iou`, for xyxy;
    eps is added to the squared diagonal and to the denominator of the aspect term's weight.

    Returns:
        (N, M) or (B, N, M); float64 if either argument is float64, else float32.
    """
    _check_eps(eps)
    return _native.complete_box_iou(*_corner_pair(boxes1, boxes2), eps)


def match_anchors(
    anchors: Floats,
    gt_boxes: Floats,
    gt_counts: Ints,
    high: float,
    low: float,
    low_quality: str = "anchor_best",
) -> tuple[Ints, Floats]:
    """Assigns to each anchor a ground-truth box (gt), or -1 (background), or -2 (ignored).

    Definition: `fastdet.ops.match_anchors`, which explains the rules.

    Args:
        anchors: (A, 4) for all images, or (B, A, 4), xyxy in pixels.
        gt_boxes: (B, G, 4) xyxy in pixels.
        gt_counts: (B,) integers; only the first gt_counts[b] gts of image b are read.
        high: an anchor whose best IoU is >= high is matched.
        low: an anchor whose best IoU is < low is background; low <= high.
        low_quality: "anchor_best", "gt_best" or "none".

    Returns:
        index, (B, A) int64: a row of gt_boxes, -1 or -2; and the best IoU of each anchor, (B, A),
        0 where there is no gt.

    Raises:
        ValueError: wrong shape; low is above high; unknown low_quality.
        TypeError: not an array, or a wrong dtype.
    """
    if not low <= high:
        raise ValueError(f"low: expected a number <= high = {high}, got {low}")
    rule = _one_of("low_quality", low_quality, _LOW_QUALITY)
    maths = _type_of(anchors=anchors, gt_boxes=gt_boxes).maths
    return _native.match_anchors(
        _dense(anchors, maths),
        _dense(gt_boxes, maths),
        _integers("gt_counts", gt_counts),
        high,
        low,
        rule,
    )


def assign_atss(
    anchors: Floats,
    level_sizes: Sequence[int],
    gt_boxes: Floats,
    gt_counts: Ints,
    topk: int = 9,
) -> tuple[Ints, Floats]:
    """Assigns to each anchor a ground-truth box (gt) or -1 by adaptive training sample selection.

    Definition: `fastdet.ops.assign_atss`, which explains the steps.

    Args:
        anchors: (A, 4) xyxy in pixels, level by level.
        level_sizes: the number of anchors of each level; their sum is A, and there are at most 16.
        gt_boxes: (B, G, 4) xyxy in pixels.
        gt_counts: (B,) integers; only the first gt_counts[b] gts of image b are read.
        topk: how many candidates a gt has on a level, 1 .. 256.

    Returns:
        index, (B, A) int64: a row of gt_boxes, or -1; and the IoU of the anchor and its gt, (B, A),
        0 where the index is -1.

    Raises:
        ValueError: wrong shape; a number outside its range; level_sizes that do not fit.
        TypeError: not an array, or a wrong dtype.
    """
    maths = _type_of(anchors=anchors, gt_boxes=gt_boxes).maths
    return _native.assign_atss(
        _dense(anchors, maths),
        list(level_sizes),
        _dense(gt_boxes, maths),
        _integers("gt_counts", gt_counts),
        topk,
    )


def assign_simota(
    scores: Floats,
    boxes: Floats,
    points: Floats,
    strides: Floats,
    gt_labels: Ints,
    gt_boxes: Floats,
    gt_counts: Ints,
    center_radius: float = 2.5,
    candidate_topk: int = 10,
    cls_weight: float = 1.0,
    iou_weight: float = 3.0,
) -> tuple[Ints, Floats]:
    """Assigns to each anchor a ground-truth box (gt) or -1 by the cost of its prediction.

    Definition: `fastdet.ops.assign_simota`, which explains the steps.

    Args:
        scores: (B, A, C) probabilities: the class's times that an object is there.
        boxes: (B, A, 4) predicted boxes, xyxy in pixels.
        points: (A, 2) x, y of each anchor, in pixels.
        strides: (A,) in pixels.
        gt_labels: (B, G) integers in 0 .. C - 1.
        gt_boxes: (B, G, 4) xyxy in pixels.
        gt_counts: (B,) integers; only the first gt_counts[b] gts of image b are read.
        center_radius: in strides, >= 0.
        candidate_topk: the number of IoUs that a gt sums, 1 .. 256.
        cls_weight: weight of the class cost.
        iou_weight: weight of the IoU cost.

    Returns:
        index, (B, A) int64: a row of gt_boxes, or -1; and the IoU of the anchor's box and its gt,
        (B, A), 0 where the index is -1.

    Raises:
        ValueError: wrong shape; a number outside its range.
        TypeError: not an array, or a wrong dtype.
    """
    arrays = {"scores": scores, "boxes": boxes, "points": points, "strides": strides}
    maths = _type_of(**arrays, gt_boxes=gt_boxes).maths
    return _native.assign_simota(
        _dense(scores, maths),
        _dense(boxes, maths),
        _dense(points, maths),
        _dense(strides, maths),
        _integers("gt_labels", gt_labels),
        _dense(gt_boxes, maths),
        _integers("gt_counts", gt_counts),
        center_radius,
        candidate_topk,
        cls_weight,
        iou_weight,
    )


def assign_task_aligned(
    scores: Floats,
    boxes: Floats,
    points: Floats,
    gt_labels: Ints,
    gt_boxes: Floats,
    gt_counts: Ints,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    min_side: float = 0.0,
) -> tuple[Ints, Floats]:
    """Assigns to each anchor a ground-truth box (gt) or -1 by score and overlap together.

    Definition: `fastdet.ops.assign_task_aligned`, which explains the steps.

    Args:
        scores: (B, A, C) probabilities.
        boxes: (B, A, 4) predicted boxes, xyxy in the unit of the gts.
        points: (A, 2) x, y of each anchor, in the unit of the gts.
        gt_labels: (B, G) integers in 0 .. C - 1.
        gt_boxes: (B, G, 4) xyxy.
        gt_counts: (B,) integers; only the first gt_counts[b] gts of image b are read.
        topk: how many anchors a gt picks, 1 .. 256.
        alpha: exponent of the score, >= 0.
        beta: exponent of the overlap, >= 0.
        min_side: the least side of the box in which a gt has candidates, >= 0.

    Returns:
        index, (B, A) int64: a row of gt_boxes, or -1; and metric, (B, A): 0 where the index is -1.

    Raises:
        ValueError: wrong shape; a number outside its range.
        TypeError: not an array, or a wrong dtype.
    """
    maths = _type_of(scores=scores, boxes=boxes, points=points, gt_boxes=gt_boxes).maths
    return _native.assign_task_aligned(
        _dense(scores, maths),
        _dense(boxes, maths),
        _dense(points, maths),
        _integers("gt_labels", gt_labels),
        _dense(gt_boxes, maths),
        _integers("gt_counts", gt_counts),
        topk,
        alpha,
        beta,
        min_side,
    )


def linear_assignment(
    cost: Floats, row_counts: Ints | None = None, col_counts: Ints | None = None
) -> Ints:
    """Gives each row at most one column, and each column at most one row, at the least total cost.

    Definition: `fastdet.ops.linear_assignment`. A cost that is not finite forbids its pair.

    Args:
        cost: (..., R, C); each leading index is a problem of its own.
        row_counts: (...) integers, the leading dimensions of cost; only the first row_counts[b]
            rows of problem b are read. None: all R.
        col_counts: the same for columns.

    Returns:
        (..., R) int64, the column of each row, or -1.

    Raises:
        ValueError: wrong shape.
        TypeError: not an array, or a wrong dtype.
    """
    maths = _type_of(cost=cost).maths
    return _native.linear_assignment(
        _dense(cost, maths),
        None if row_counts is None else _integers("row_counts", row_counts),
        None if col_counts is None else _integers("col_counts", col_counts),
    )


def match_queries(
    logits: Floats,
    boxes: Floats,
    gt_labels: Ints,
    gt_boxes: Floats,
    gt_counts: Ints,
    cost_class: float = 2,
    cost_bbox: float = 5,
    cost_giou: float = 2,
    alpha: float = 0.25,
    gamma: float = 2,
    kind: str = "focal",
    groups: int = 1,
) -> Ints:
    """Matches the queries of each image, and of each decoder layer, with its gts one to one.

    Definition: `fastdet.ops.match_queries`, which describes the costs.

    Args:
        logits: (..., B, Q, C); the leading dimensions are decoder layers.
        boxes: (..., B, Q, 4) centre x, centre y, width, height, in units of the image's sides.
        gt_labels: (B, G) integers in 0 .. C - 1.
        gt_boxes: (B, G, 4) in the format of boxes.
        gt_counts: (B,) integers; only the first gt_counts[b] gts of image b are read.
        cost_class: weight of the class cost.
        cost_bbox: weight of the L1 distance.
        cost_giou: weight of the generalized IoU.
        alpha: of the focal cost, in [0, 1].
        gamma: of the focal cost, >= 0.
        kind: "focal" or "softmax".
        groups: the queries are that many parts of equal size, each matched by itself.

    Returns:
        (..., B, Q) int64: the gt of each query, or -1.

    Raises:
        ValueError: wrong shape; unknown kind; a number outside its range.
        TypeError: not an array, or a wrong dtype.
    """
    class_cost = _one_of("kind", kind, _CLASS_COSTS)
    maths = _type_of(logits=logits, boxes=boxes, gt_boxes=gt_boxes).maths
    return _native.match_queries(
        _dense(logits, maths),
        _dense(boxes, maths),
        _integers("gt_labels", gt_labels),
        _dense(gt_boxes, maths),
        _integers("gt_counts", gt_counts),
        cost_class,
        cost_bbox,
        cost_giou,
        alpha,
        gamma,
        class_cost,
        groups,
    )


def encode_boxes(boxes: Floats, anchors: Floats, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Floats:
    """Encodes boxes as deltas relative to anchors. `decode_boxes` is the inverse.

    Definition: `fastdet.ops.encode_boxes`.

    Args:
        boxes: (..., 4) xyxy in pixels.
        anchors: (..., 4) xyxy in pixels; broadcasts with boxes.
        weights: factors that dx, dy, dw, dh are multiplied by; > 0.

    Returns:
        (..., 4) dx, dy, dw, dh in the common type of the arguments.

    Raises:
        ValueError: shapes that do not broadcast; a weight that is not positive and finite.
        TypeError: not an array, or a wrong dtype.
    """
    _check_weights(weights)
    floats = _type_of(boxes=boxes, anchors=anchors)
    shape = _broadcast("encode_boxes", "boxes", boxes, anchors)
    deltas = _native.encode_boxes(
        _dense(np.broadcast_to(boxes, shape), floats.maths),
        _repeatable(anchors, shape, floats.maths),
        weights,
    )
    return deltas.astype(floats.result, copy=False)


def decode_boxes(
    deltas: Floats,
    anchors: Floats,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    sizes: Ints | None = None,
) -> Floats:
    """Decodes deltas relative to anchors into boxes. With sizes, boxes are clipped to the images.

    Definition: `fastdet.ops.decode_boxes`.

    Args:
        deltas: (..., 4) dx, dy, dw, dh.
        anchors: (..., 4) xyxy in pixels; broadcasts to the shape of deltas.
        weights: factors that dx, dy, dw, dh are divided by; > 0.
        sizes: (B, 2) integers, height and width of each image; B is the first dimension of deltas.

    Returns:
        (..., 4) xyxy in pixels, in the common type of deltas and anchors.

    Raises:
        ValueError: anchors that do not broadcast to deltas; a weight that is not positive and
            finite; wrong shape of sizes.
        TypeError: not an array, or a wrong dtype.
    """
    _check_weights(weights)
    floats = _type_of(deltas=deltas, anchors=anchors)
    shape = _broadcast("decode_boxes", "deltas", deltas, anchors)
    if shape != deltas.shape:
        raise ValueError(
            "decode_boxes: anchors: expected a shape that broadcasts to deltas "
            f"{deltas.shape}, got one that makes it {shape}"
        )
    boxes = _native.decode_boxes(
        _dense(deltas, floats.maths),
        _repeatable(anchors, shape, floats.maths),
        weights,
        None if sizes is None else _integers("sizes", sizes),
    )
    return boxes.astype(floats.result, copy=False)


def multiclass_nms(
    boxes: Floats,
    scores: Floats,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int = 300,
    *,
    multi_label: bool = False,
    max_candidates: int = 30_000,
) -> tuple[Floats, Floats, Ints]:
    """NMS per class for the outputs of most exported detectors: boxes with a score for each class.

    Example: a YOLO that returns (1, 4 + C, N), with boxes as centre, width and height:

        x = session.run(None, {"images": images})[0][0]
        boxes = np.concatenate([x[:2] - x[2:4] / 2, x[:2] + x[2:4] / 2]).T
        boxes, scores, labels = multiclass_nms(boxes, x[4:].T, 0.25, 0.7)

    Boxes with a coordinate that is not finite and scores that are NaN are dropped.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N, C). C-contiguous arrays and transposes of C-contiguous arrays are not copied.
        score_threshold: a candidate's score is above this.
        iou_threshold: in [0, 1]; a box is suppressed if its IoU with a kept box of its class is
            above this.
        max_detections: maximum number of detections; those with the highest scores are returned.
        multi_label: True: a box is a candidate for each class whose score is above the threshold.
            False: only for its best class (ties: the lowest class).
        max_candidates: maximum number of candidates for NMS, those with the highest scores; ties:
            those that come first in memory.

    Returns:
        boxes (D, 4), scores (D,) and labels (D,) int64, highest score first; ties: by box, then by
        class. float64 for float64 boxes, else float32.

    Raises:
        ValueError: wrong shape; a number outside its range.
        TypeError: not an array, or a wrong dtype.
    """
    _check_iou_threshold(iou_threshold)
    if math.isnan(score_threshold):
        raise ValueError("score_threshold: expected a number, got nan")
    _check_not_negative(max_detections=max_detections, max_candidates=max_candidates)
    maths = _type_of(boxes=boxes).maths
    _check_array("scores", scores, "f", "float16, float32 or float64")
    by_class = scores.flags.f_contiguous and not scores.flags.c_contiguous
    return _native.multiclass_nms(
        _dense(boxes, maths),
        _dense(scores.T if by_class else scores, maths),
        by_class,
        score_threshold,
        iou_threshold,
        max_detections,
        multi_label,
        max_candidates,
    )


@renamed_keywords(nms_thresh="iou_threshold", score_thresh="score_threshold")
def retinanet_detections(
    logits: Sequence[Floats],
    deltas: Sequence[Floats],
    anchors: Floats,
    sizes: Ints,
    score_threshold: float,
    topk_candidates: int,
    iou_threshold: float,
    detections_per_img: int,
) -> tuple[Floats, Floats, Ints, Ints]:
    """The detections of each image from the raw outputs of a RetinaNet, highest score first.

    Definition: `fastdet.ops.retinanet_detections`.

    Args:
        logits: for each level (B, A_l, C), in the order of its anchors.
        deltas: for each level (B, A_l, 4).
        anchors: (A, 4) xyxy in pixels, level after level.
        sizes: (B, 2) integers, height and width of each image.
        score_threshold: a detection's probability is above this.
        topk_candidates: maximum number of (anchor, class) pairs of a level that are decoded.
        iou_threshold: in [0, 1]; a box suppresses boxes of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image; the best are kept.

    Returns:
        boxes (B, D, 4), scores (B, D), labels (B, D) int64 in 0 .. C - 1 and counts (B,) int64.
        Rows from an image's count on are zero. float64 for float64 logits or deltas, else float32.

    Raises:
        ValueError: wrong shape; no level; a number outside its range.
        TypeError: not an array, or a wrong dtype.
    """
    _check_iou_threshold(iou_threshold)
    _check_not_negative(topk_candidates=topk_candidates, detections_per_img=detections_per_img)
    if not len(logits):
        raise ValueError("logits: expected at least one level, got none")
    maths = _type_of(logits=list(logits), deltas=list(deltas)).maths
    return _native.retinanet_detections(
        [_dense(own, maths) for own in logits],
        [_dense(own, maths) for own in deltas],
        _floats("anchors", anchors, maths),
        _integers("sizes", sizes),
        score_threshold,
        topk_candidates,
        iou_threshold,
        detections_per_img,
    )


# ---- arguments ----------------------------------------------------------------------------------


def _check_iou_threshold(iou_threshold: float) -> None:
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected a number in [0, 1], got {iou_threshold}")


def _check_not_negative(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name}: expected a number >= 0, got {number}")


def _check_weights(weights: Weights) -> None:
    if len(weights) != 4 or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: expected four finite numbers > 0, got {weights}")


def _check_model_weights(weights: Sequence[float]) -> None:
    if not len(weights) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: expected finite numbers > 0, got {list(weights)}")


def _check_eps(eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number >= 0, got {eps}")


def _one_of(name: str, value: str, table: dict[str, Any]) -> Any:
    if value not in table:
        raise ValueError(f"{name}: expected one of {tuple(table)}, got {value!r}")
    return table[value]


def _check_array(name: str, array: Any, kinds: str, expected: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected {expected}, got {array.dtype} {array.shape}")


def _type_of(**arguments: Any) -> _Type:
    """The common type of these arguments, which are arrays or sequences of arrays."""
    widest = 2
    for name, argument in arguments.items():
        for array in argument if isinstance(argument, (list, tuple)) else (argument,):
            _check_array(name, array, "f", "float16, float32 or float64")
            widest = max(widest, array.dtype.itemsize)
    if widest == 8:
        return _Type(np.float64, np.float64)
    return _Type(np.float32, np.float16 if widest == 2 else np.float32)


def _dense(array: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """The array itself if the kernels can read it in place, else a converted copy."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        return array
    return np.array(array, dtype=dtype, order="C")


def _floats(name: str, array: Any, dtype: type[np.generic]) -> NDArray[Any]:
    _check_array(name, array, "f", "float16, float32 or float64")
    return _dense(array, dtype)


def _integers(name: str, array: Any) -> Ints:
    _check_array(name, array, "iu", "integers")
    return _dense(array, np.int64)


def _corner_pair(
    boxes1: NDArray[Any], boxes2: NDArray[Any], fmt: str = "xyxy"
) -> tuple[Floats, Floats]:
    """Both as dense xyxy of the floating type that their IoU is computed in."""
    boxes1, boxes2 = _corners("boxes1", boxes1, fmt), _corners("boxes2", boxes2, fmt)
    maths = _type_of(boxes1=boxes1, boxes2=boxes2).maths
    return _dense(boxes1, maths), _dense(boxes2, maths)


def _corners(name: str, boxes: NDArray[Any], fmt: str) -> Floats:
    """Boxes as xyxy in a floating type. Corners are computed in float32 or float64."""
    _check_array(name, boxes, "fiu", "floating or integer boxes")
    if boxes.dtype.kind != "f" or (fmt != "xyxy" and boxes.dtype.itemsize < 4):
        boxes = boxes.astype(np.float32)
    if fmt == "xyxy" or boxes.shape[-1:] != (4,):  # the kernel reports a wrong shape
        return boxes
    point, sides = boxes[..., :2], boxes[..., 2:]
    if fmt == "cxcywh":
        point = point - sides / 2
    return np.concatenate([point, point + sides], -1)


def _broadcast(op: str, name: str, rows: Floats, anchors: Floats) -> tuple[int, ...]:
    """The shape that rows and anchors, both (..., 4), broadcast to."""
    shapes = f"{name} {rows.shape} and anchors {anchors.shape}"
    if rows.shape[-1:] != (4,) or anchors.shape[-1:] != (4,):
        raise ValueError(f"{op}: expected rows of 4, got {shapes}")
    try:
        return np.broadcast_shapes(rows.shape, anchors.shape)
    except ValueError as error:
        raise ValueError(f"{op}: expected shapes that broadcast, got {shapes}") from error


def _repeatable(anchors: Floats, shape: tuple[int, ...], dtype: type[np.generic]) -> Floats:
    """Anchors in a form that the kernels can repeat over the leading dimensions of `shape`."""
    if anchors.shape != shape[len(shape) - anchors.ndim :]:
        anchors = np.broadcast_to(anchors, shape)
    return _dense(anchors, dtype)
