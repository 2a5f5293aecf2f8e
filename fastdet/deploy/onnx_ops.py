# SPDX-License-Identifier: BSD-3-Clause
"""The operators of `detect` in standard ONNX operators, for torch.onnx's translation table.

The definitions and the order of ties are those of `fastdet.ops`. Detections are the same if the
runtime rounds in the same way. Each function runs while torch.onnx builds a graph: operations on
ONNX values become nodes; everything else is computed once, at export. The number of images may be
dynamic. NMS and pooling process only the real rows, so shapes inside the graph depend on values.
The results have the fixed shapes of the operators. Only float32.

No constant of a graph is infinite, because runtimes treat infinities differently: OpenVINO's
ReduceMax over values that are all -inf gives the lowest float. A row without a detection has the
score NOTHING, and only rows above LEAST count.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from onnxscript import opset18, opset19

from fastdet.ops.box_coding import Weights

op: Any = opset18  # Any, because its annotations say tensors, not graph values
Value = Any  # a value of the graph
Rows = tuple[Value, Value, Value, Value]  # boxes (B, D, 4), scores (B, D), labels (B, D), counts

HIGHEST = float(np.finfo(np.float32).max)
LEAST = -(2.0**126)  # below any logit; it and NOTHING are exact in bfloat16, too
NOTHING = 2 * LEAST
MAX_LOG_RATIO = math.log(1000 / 16)  # kMaxLogRatio in csrc/geometry/box_coding.h
LEVEL_EPSILON = 1e-6  # torchvision's, as in csrc/geometry/pyramid.h


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The custom_translation_table for torch.onnx.export."""
    ops = torch.ops.fastdet
    return {
        ops.decode_boxes.default: decode_boxes,
        ops.deform_conv2d.default: deform_conv2d,
        ops.ms_deform_attn.default: ms_deform_attn,
        ops.multiscale_roi_align.default: multiscale_roi_align,
        ops.nms_padded.default: nms_padded,
        ops.retinanet_detections.default: retinanet_detections,
        ops.roi_detections.default: roi_detections,
        ops.rpn_proposals.default: rpn_proposals,
        torch.ops.aten.sort.stable: sort,
    }


# ---- the operators -------------------------------------------------------------------------------


def rpn_proposals(
    objectness: Sequence[Value],
    deltas: Sequence[Value],
    anchors: Value,
    sizes: Value,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float,
    score_threshold: float,
    min_size: float,
) -> Rows:
    """See `fastdet.ops.rpn_proposals`."""
    found, first = [], 0
    for level, (logits, own_deltas) in enumerate(zip(objectness, deltas, strict=True)):
        rows = logits.shape[1]
        top, index = op.TopK(logits, _ints(min(pre_nms_top_n, rows)))
        boxes = _decode_rows(own_deltas, anchors, first, index, sizes)
        found.append((boxes, _with_sides(top, boxes, min_size), _filled(index, level)))
        first += rows
    bound = _logit_bound(np.nextafter(np.float32(score_threshold), np.float32(-np.inf)))
    rows = sum(min(pre_nms_top_n, logits.shape[1]) for logits in objectness)
    return _keep(found, len(found), rows, bound, iou_threshold, post_nms_top_n)


def retinanet_detections(
    logits: Sequence[Value],
    deltas: Sequence[Value],
    anchors: Value,
    sizes: Value,
    score_threshold: float,
    topk_candidates: int,
    iou_threshold: float,
    detections_per_img: int,
) -> Rows:
    """See `fastdet.ops.retinanet_detections`."""
    found, first, total = [], 0, 0
    num_classes = logits[0].shape[2]
    for own_logits, own_deltas in zip(logits, deltas, strict=True):
        rows = own_logits.shape[1]
        # The best k pairs belong to the k anchors with the best top classes. So only their classes
        # are sorted.
        anchors_in_use = min(topk_candidates, rows)
        _, index = op.TopK(op.ReduceMax(own_logits, _ints(2), keepdims=0), _ints(anchors_in_use))
        index, _ = op.TopK(index, _ints(anchors_in_use), largest=0)  # ties by anchor
        pairs = min(topk_candidates, anchors_in_use * num_classes)
        top, pair = op.TopK(
            op.Reshape(_take(own_logits, index, num_classes), _ints(0, -1)), _ints(pairs)
        )
        anchor = op.GatherElements(index, op.Div(pair, _int(num_classes)), axis=1)
        boxes = _decode_rows(own_deltas, anchors, first, anchor, sizes)
        labels = op.Mod(pair, _int(num_classes))
        found.append((boxes, _with_sides(top, boxes, -HIGHEST), labels))
        first, total = first + rows, total + pairs
    bound = _logit_bound(np.float32(score_threshold))
    return _keep(found, num_classes, total, bound, iou_threshold, detections_per_img)


def roi_detections(
    logits: Value,
    deltas: Value,
    proposals: Value,
    counts: Value | None,
    sizes: Value,
    wx: float,
    wy: float,
    ww: float,
    wh: float,
    score_threshold: float,
    iou_threshold: float,
    detections_per_img: int,
    min_size: float,
) -> Rows:
    """See `fastdet.ops.roi_detections`."""
    rois, classes = logits.shape[1], logits.shape[2] - 1
    scores = _columns(op.Softmax(logits, axis=-1), 1, classes + 1, axis=2)  # (B, K, C)
    if counts is not None:
        real = op.Less(_range(rois), op.Unsqueeze(counts, _ints(1)))
        scores = op.Where(op.Unsqueeze(real, _ints(2)), scores, _float(NOTHING))
    boxes = _decode(
        _columns(deltas, 1, classes + 1, axis=2),
        op.Unsqueeze(proposals, _ints(2)),
        (wx, wy, ww, wh),
        op.Unsqueeze(_limits(sizes), _ints(1)),
    )  # (B, K, C, 4)
    scores = _with_sides(scores, boxes, min_size)
    # Each class has its own boxes, so NMS treats each (image, class) pair as one image.
    kept = _suppress(
        op.Reshape(op.Transpose(boxes, perm=[0, 2, 1, 3]), _ints(-1, rois, 4)),
        op.Reshape(op.Transpose(scores, perm=[0, 2, 1]), _ints(-1, 1, rois)),
        score_threshold,
        iou_threshold,
        detections_per_img,
    )
    kept = op.Transpose(op.Reshape(kept, _ints(-1, classes, rois)), perm=[0, 2, 1])
    kept = op.Reshape(kept, _ints(-1, rois * classes))
    labels = op.Add(op.Mod(_range(rois * classes), _int(classes)), _int(1))
    labels = op.Add(op.Unsqueeze(labels, _ints(0)), _filled(kept, 0))
    boxes = op.Reshape(boxes, _ints(0, -1, 4))
    return _best(kept, boxes, labels, rois * classes, detections_per_img, lambda score: score)


def decode_boxes(
    deltas: Value,
    anchors: Value,
    wx: float,
    wy: float,
    ww: float,
    wh: float,
    sizes: Value | None,
) -> Value:
    """See `fastdet.ops.decode_boxes`."""
    boxes = _decode_unclipped(deltas, anchors, (wx, wy, ww, wh))
    if sizes is None:
        return boxes
    between = [1] * (len(deltas.shape) - 2)
    return _clip(boxes, op.Reshape(_limits(sizes), _ints(-1, *between, 4)))


def nms_padded(
    boxes: Value,
    scores: Value,
    iou_threshold: float,
    max_keep: int,
    groups: Value | None,
    counts: Value | None,
) -> tuple[Value, Value]:
    """See `fastdet.ops.nms_padded`."""
    rows = boxes.shape[1]
    if counts is not None:
        real = op.Less(_range(rows), op.Unsqueeze(counts, _ints(1)))
        scores = op.Where(real, scores, _float(NOTHING))
    scores = _with_sides(scores, boxes, -HIGHEST)
    if groups is None:
        groups, num_groups = _filled(scores, 0), _int(1)
    else:
        num_groups = op.Add(op.ReduceMax(groups, keepdims=0), _int(1))
    kept = _suppress_groups(boxes, scores, groups, num_groups, LEAST, iou_threshold, max_keep)
    best, index = op.TopK(kept, _ints(min(max_keep, rows)))
    found = op.Greater(best, _float(LEAST))
    keep = _padded(op.Where(found, index, _int(-1)), max_keep - rows, _int(-1))
    return keep, op.ReduceSum(op.Cast(found, to=TensorProto.INT64), _ints(1), keepdims=0)


def ms_deform_attn(
    value: Value,
    heights: Sequence[int],
    widths: Sequence[int],
    locations: Value,
    weights: Value,
    softmax: bool,
) -> Value:
    """See `fastdet.ops.ms_deform_attn`."""
    heads, channels = value.shape[2:]
    _, queries, _, levels, points, _ = locations.shape
    grid = op.Sub(op.Mul(locations, _float(2.0)), _float(1.0))
    grid = op.Transpose(grid, perm=[0, 2, 1, 3, 4, 5])  # (B, H, Q, L, P, 2)
    samples, first = [], 0
    for level, (height, width) in enumerate(zip(heights, widths, strict=True)):
        pixels = _columns(value, first, first + height * width, axis=1)
        pixels = op.Transpose(pixels, perm=[0, 2, 3, 1])  # (B, H, D, height * width)
        own = op.Reshape(op.Gather(grid, _int(level), axis=3), _ints(-1, queries, points, 2))
        samples.append(
            op.GridSample(
                op.Reshape(pixels, _ints(-1, channels, height, width)),
                own,
                align_corners=0,
                mode="bilinear",
                padding_mode="zeros",
            )
        )  # (B * H, D, Q, P)
        first += height * width
    weights = op.Transpose(weights, perm=[0, 2, 1, 3, 4])
    weights = op.Reshape(weights, _ints(-1, 1, queries, levels * points))
    if softmax:
        weights = op.Softmax(weights, axis=3)
    total = op.ReduceSum(op.Mul(op.Concat(*samples, axis=3), weights), _ints(3), keepdims=0)
    total = op.Reshape(total, _ints(-1, heads * channels, queries))
    return op.Transpose(total, perm=[0, 2, 1])


def deform_conv2d(
    input: Value,
    offset: Value,
    weight: Value,
    bias: Value | None,
    mask: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Value:
    """See `fastdet.ops.deform_conv2d`. The opset is 19 or above."""
    channels, (_, group_channels, *kernel) = input.shape[1], weight.shape
    return opset19.DeformConv(
        input,
        weight,
        offset,
        bias,
        mask,
        dilations=list(dilation),
        group=channels // group_channels,
        kernel_shape=list(kernel),
        offset_group=offset.shape[1] // (2 * kernel[0] * kernel[1]),
        pads=[*padding, *padding],
        strides=list(stride),
    )


def multiscale_roi_align(
    features: Sequence[Value],
    boxes: Value,
    counts: Value | None,
    pooled_height: int,
    pooled_width: int,
    scales: Sequence[float],
    sampling_ratio: int,
    canonical_scale: int,
    canonical_level: int,
    aligned: bool,
) -> Value:
    """See `fastdet.ops.multiscale_roi_align`."""
    rows, channels = boxes.shape[1], features[0].shape[1]
    level = _levels(boxes, scales, canonical_scale, canonical_level)  # (B, K)
    if counts is not None:
        real = op.Less(_range(rows), op.Unsqueeze(counts, _ints(1)))
        level = op.Where(real, level, _int(-1))
    image = op.Unsqueeze(op.Range(_int(0), op.Squeeze(op.Shape(boxes, end=1)), _int(1)), _ints(1))
    image = op.Reshape(op.Add(image, _filled(level, 0)), _ints(-1))
    level = op.Reshape(level, _ints(-1))
    rois = op.Reshape(boxes, _ints(-1, 4))
    pooled, indices = [], []
    for number, (own, scale) in enumerate(zip(features, scales, strict=True)):
        index = op.Reshape(op.NonZero(op.Equal(level, _int(number))), _ints(-1))
        indices.append(index)
        pooled.append(
            op.RoiAlign(
                own,
                op.Gather(rois, index),
                op.Gather(image, index),
                coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
                output_height=pooled_height,
                output_width=pooled_width,
                sampling_ratio=max(sampling_ratio, 0),
                spatial_scale=scale,
            )
        )
    shape = (channels, pooled_height, pooled_width)
    zeros = op.Expand(_float(0.0), op.Concat(op.Shape(level), _ints(*shape), axis=0))
    index = op.Unsqueeze(op.Concat(*indices, axis=0), _ints(1))
    together = op.ScatterND(zeros, index, op.Concat(*pooled, axis=0))
    return op.Reshape(together, _ints(-1, rows, *shape))


def sort(self: Value, *, stable: bool, dim: int = -1, descending: bool = False) -> Value:
    """aten::sort.stable. ONNX's TopK keeps the order of equal values, too."""
    return op.TopK(self, _ints(self.shape[dim]), axis=dim, largest=int(descending))


# ---- suppression ---------------------------------------------------------------------------------


def _keep(
    found: Sequence[tuple[Value, Value, Value]],
    num_labels: int,
    rows: int,
    bound: float,
    iou_threshold: float,
    max_keep: int,
) -> Rows:
    """The last step of a dense head: joins the levels' boxes, logits and labels; NMS per label."""
    boxes, logits, labels = (
        op.Concat(*of_levels, axis=1) for of_levels in zip(*found, strict=True)
    )
    kept = _suppress_groups(boxes, logits, labels, _int(num_labels), bound, iou_threshold, max_keep)
    return _best(kept, boxes, labels, rows, max_keep, op.Sigmoid)


def _suppress_groups(
    boxes: Value,
    scores: Value,
    groups: Value,
    num_groups: Value,
    bound: float,
    iou_threshold: float,
    max_keep: int,
) -> Value:
    """`scores` (B, N), NOTHING where suppressed: only by a box of the same group (B, N)."""
    own = op.OneHot(groups, num_groups, op.Constant(value_floats=[0.0, 1.0]), axis=1)  # (B, G, N)
    by_group = op.Where(
        op.Cast(own, to=TensorProto.BOOL), op.Unsqueeze(scores, _ints(1)), _float(NOTHING)
    )
    kept = _suppress(boxes, by_group, bound, iou_threshold, max_keep)
    return op.ReduceMax(kept, _ints(1), keepdims=0)


def _suppress(
    boxes: Value, scores: Value, bound: float, iou_threshold: float, max_keep: int
) -> Value:
    """`scores` (B, G, N) of boxes (B, N, 4), NOTHING where suppressed or not above `bound`."""
    chosen = op.NonMaxSuppression(
        boxes, scores, _ints(max_keep), _floats(_round_down(iou_threshold)), _floats(bound)
    )  # (S, 3): image, group, row
    none = op.Expand(_float(NOTHING), op.Shape(scores))
    return op.ScatterND(none, chosen, op.GatherND(scores, chosen))


def _best(
    kept: Value,
    boxes: Value,
    labels: Value,
    rows: int,
    max_keep: int,
    score: Callable[[Value], Value],
) -> Rows:
    """The best max_keep of each image's `rows` candidates; `kept` is NOTHING if dropped."""
    best, index = op.TopK(kept, _ints(min(max_keep, rows)))
    real = op.Greater(best, _float(LEAST))
    counts = op.ReduceSum(op.Cast(real, to=TensorProto.INT64), _ints(1), keepdims=0)
    boxes = op.Where(op.Unsqueeze(real, _ints(2)), _take(boxes, index, 4), _float(0.0))
    scores = op.Where(real, score(best), _float(0.0))
    labels = op.Where(real, op.GatherElements(labels, index, axis=1), _int(0))
    more = max_keep - rows
    return (
        _padded(boxes, more, _float(0.0)),
        _padded(scores, more, _float(0.0)),
        _padded(labels, more, _int(0)),
        counts,
    )


# ---- boxes ---------------------------------------------------------------------------------------


def _decode_rows(deltas: Value, anchors: Value, first: int, index: Value, sizes: Value) -> Value:
    """Boxes (B, k, 4) of the rows `index` (B, k) of a level whose anchors begin at row `first`."""
    own_anchors = op.Gather(anchors, op.Add(index, _int(first)))
    return _decode(_take(deltas, index, 4), own_anchors, (1.0, 1.0, 1.0, 1.0), _limits(sizes))


def _decode(deltas: Value, anchors: Value, weights: Weights, limits: Value) -> Value:
    return _clip(_decode_unclipped(deltas, anchors, weights), limits)


def _clip(boxes: Value, limits: Value) -> Value:
    return op.Min(op.Max(boxes, _float(0.0)), limits)


def _decode_unclipped(deltas: Value, anchors: Value, weights: Weights) -> Value:
    """Boxes from deltas of anchors; see csrc/geometry/box_coding.h."""
    low, high = _columns(anchors, 0, 2), _columns(anchors, 2, 4)
    sides = op.Sub(high, low)
    shift = op.Div(_columns(deltas, 0, 2), _floats(*weights[:2]))
    growth = op.Min(op.Div(_columns(deltas, 2, 4), _floats(*weights[2:])), _float(MAX_LOG_RATIO))
    centres = op.Add(op.Mul(shift, sides), op.Add(low, op.Mul(sides, _float(0.5))))
    halves = op.Mul(op.Mul(op.Exp(growth), sides), _float(0.5))
    return op.Concat(op.Sub(centres, halves), op.Add(centres, halves), axis=-1)


def _limits(sizes: Value) -> Value:
    """Height and width (B, 2) -> maximum of each box coordinate (B, 1, 4)."""
    limits = op.Cast(op.Gather(sizes, _ints(1, 0, 1, 0), axis=1), to=TensorProto.FLOAT)
    return op.Unsqueeze(limits, _ints(1))


def _sides(boxes: Value) -> tuple[Value, Value]:
    sides = op.Sub(_columns(boxes, 2, 4), _columns(boxes, 0, 2))
    return op.Gather(sides, _int(0), axis=-1), op.Gather(sides, _int(1), axis=-1)


def _with_sides(scores: Value, boxes: Value, min_size: float) -> Value:
    """`scores`, NOTHING where a side is shorter than min_size or not a number."""
    width, height = _sides(boxes)
    good = op.And(
        op.GreaterOrEqual(width, _float(min_size)), op.GreaterOrEqual(height, _float(min_size))
    )
    return op.Where(good, scores, _float(NOTHING))


def _levels(
    boxes: Value, scales: Sequence[float], canonical_scale: int, canonical_level: int
) -> Value:
    """The level (B, K) of each box, found by comparing areas as in csrc/geometry/pyramid.h."""
    width, height = _sides(boxes)
    area = op.Mul(width, height)
    level = _filled(area, 0)
    for scale in scales[1:]:
        number = round(-math.log2(scale)) - canonical_level
        side = canonical_scale * 2 ** (number - LEVEL_EPSILON)
        level = op.Add(
            level, op.Cast(op.GreaterOrEqual(area, _float(side**2)), to=TensorProto.INT64)
        )
    return level


# ---- thresholds ----------------------------------------------------------------------------------


def _round_down(threshold: float) -> float:
    """The largest float32 that is not above the threshold.

    A float32 is above the threshold exactly if it is above the result.
    """
    rounded = np.float32(threshold)
    above = float(rounded) > threshold
    return float(np.nextafter(rounded, np.float32(-np.inf)) if above else rounded)


def _logit_bound(threshold: np.float32) -> float:
    """The logit of the threshold: a larger logit has a probability above the threshold."""
    probability = float(threshold)
    if probability <= 0:
        return LEAST
    return math.log(probability / (1 - probability)) if probability < 1 else HIGHEST


# ---- small values --------------------------------------------------------------------------------


def _ints(*numbers: int) -> Value:
    return op.Constant(value_ints=list(numbers))


def _int(number: int) -> Value:
    return op.Constant(value_int=number)


def _floats(*numbers: float) -> Value:
    return op.Constant(value_floats=[float(number) for number in numbers])


def _float(number: float) -> Value:
    return op.Constant(value_float=float(number))


def _range(length: int) -> Value:
    return op.Constant(value_ints=list(range(length)))


def _filled(like: Value, number: int) -> Value:
    """int64 tensor with the shape of `like`, filled with `number`."""
    return op.Expand(_int(number), op.Shape(like))


def _columns(rows: Value, begin: int, end: int, axis: int = -1) -> Value:
    return op.Slice(rows, _ints(begin), _ints(end), _ints(axis))


def _take(rows: Value, index: Value, columns: int) -> Value:
    """Rows `index` (B, k) of (B, N, columns)."""
    shape = op.Concat(op.Shape(index), _ints(columns), axis=0)
    return op.GatherElements(rows, op.Expand(op.Unsqueeze(index, _ints(2)), shape), axis=1)


def _padded(rows: Value, more: int, value: Value) -> Value:
    """(B, N, ...) padded to (B, N + more, ...) with `value`."""
    return rows if more <= 0 else op.Pad(rows, _ints(0, more), value, _ints(1))
