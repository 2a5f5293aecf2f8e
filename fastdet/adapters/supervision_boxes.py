# SPDX-License-Identifier: BSD-3-Clause
"""supervision's suppression and merging of boxes, by `fastdet.numpy.nmm`.

supervision computes overlaps in float64, rounds them to float32 and compares them: in suppression
with the threshold, in merging with the threshold rounded to float32. `nmm` compares overlaps in
float64, so it gets the least float64 number that supervision's comparison accepts.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdet.numpy import nmm
from fastdet.replacement import Replacements, module_with

from .groups import Ints, Rows, listed

TESTED = "0.31.2"
_CALLER = "fastdet.adapters.supervision"
_MODULE = "supervision.detection.utils.iou_and_nms"
_SUPPRESS, _GROUP = "box_non_max_suppression", "_group_overlapping_boxes"


def _replace_all(replacements: Replacements) -> None:
    parameters = ["predictions", "iou_threshold", "overlap_metric"]
    functions = {_SUPPRESS: parameters, _GROUP: parameters, "OverlapMetric.from_value": ["value"]}
    module = module_with(_CALLER, _MODULE, TESTED, functions)
    replacements.replace(module, _GROUP, _merging(module.OverlapMetric.from_value))
    theirs = getattr(module, _SUPPRESS)
    ours = _suppression(module.OverlapMetric.from_value)
    for name, imported in list(sys.modules.items()):
        if name.startswith("supervision") and vars(imported).get(_SUPPRESS) is theirs:
            replacements.replace(imported, _SUPPRESS, ours)


REPLACEMENTS = Replacements(_replace_all)


def _suppression(metric_of: Callable[[Any], Any]) -> Callable[[Any], Callable[..., Any]]:
    def decorate(theirs: Callable[..., Any]) -> Callable[..., Any]:
        def box_non_max_suppression(
            predictions: Rows, iou_threshold: float = 0.5, overlap_metric: Any = "IOU"
        ) -> NDArray[np.bool_]:
            if not (0 <= iou_threshold <= 1 and _is_usable(predictions)):
                return theirs(predictions, iou_threshold, overlap_metric)
            order = np.flip(predictions[:, 4].argsort())
            labels = None
            if predictions.shape[1] == 6:
                labels = np.unique(predictions[order, 5], return_inverse=True)[1]
            least = _least_rounded_above(iou_threshold)
            metric = metric_of(overlap_metric).value
            group = _group_of(predictions[order], labels, least, metric)
            keep = np.empty(len(order), dtype=bool)
            keep[order] = group == np.arange(len(order))
            return keep

        return box_non_max_suppression

    return decorate


def _merging(metric_of: Callable[[Any], Any]) -> Callable[[Any], Callable[..., Any]]:
    def decorate(theirs: Callable[..., Any]) -> Callable[..., Any]:
        def group_overlapping_boxes(
            predictions: Rows, iou_threshold: float = 0.5, overlap_metric: Any = "IOU"
        ) -> list[list[int]]:
            if not (0 < np.float32(iou_threshold) <= 1 and _is_usable(predictions)):
                return theirs(predictions, iou_threshold, overlap_metric)
            order = np.flip(predictions[:, 4].argsort())
            least = _least_rounded_to(np.float32(iou_threshold))
            metric = metric_of(overlap_metric).value
            group = _group_of(predictions[order], None, least, metric)
            return listed(group, np.argsort(group, kind="stable"), order)

        return group_overlapping_boxes

    return decorate


def _is_usable(predictions: Rows) -> bool:
    return predictions.dtype.kind in "fiu" and bool(np.isfinite(predictions).all())


def _group_of(rows: Rows, labels: Ints | None, least: float, metric: str) -> Ints:
    """The rank of the kept box that each box joins.

    Args:
        rows: (N, 5 or more) boxes and scores, in the order in which they are visited.
        labels: (N,) of the boxes, or None.
        least: two boxes match if their overlap is at least this.
        metric: "IOU" or "IOS".
    """
    ranks = np.arange(len(rows))
    if least > 1:
        return ranks
    boxes = rows[:, :4].astype(np.float64)
    return nmm(boxes, -ranks.astype(np.float64), labels, least, metric.lower())[0]


def _least_rounded_above(threshold: float) -> float:
    """The least float64 number whose rounding to float32 is above the threshold."""
    above = np.float32(threshold)
    if float(above) <= threshold:
        above = np.nextafter(above, np.float32(2))
    return _least_rounded_to(above)


def _least_rounded_to(value: np.float32) -> float:
    """The least float64 number whose rounding to float32 is `value`, which is above 0."""
    middle = (float(np.nextafter(value, np.float32(0))) + float(value)) / 2
    return middle if np.float32(middle) == value else float(np.nextafter(middle, 2))
