# SPDX-License-Identifier: BSD-3-Clause
"""The groups of boxes in SAHI's post-processing, by `fastdet.numpy.nmm`.

SAHI's functions nms, greedy_nmm and nmm look up the code of a backend by `_dispatch` in each call;
that is what is replaced. They get arrays with rows x1, y1, x2, y2, score, category. The function
that makes such an array from SAHI's objects is replaced too, by a faster one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdet.numpy import nmm
from fastdet.replacement import Replacements, module_with

from .groups import Ints, Rows, listed

TESTED = "0.12.8"
_CALLER = "fastdet.adapters.sahi"
_METRICS = ("IOU", "IOS")
_PARAMETERS = ("predictions", "match_metric", "match_threshold")  # of SAHI's functions
_MOST_TURNS = 500
_TO_ARRAY = "object_prediction_list_to_numpy"


def _rows_of(theirs: Callable[[Any], Rows]) -> Callable[[Any], Rows]:
    def object_prediction_list_to_numpy(object_prediction_list: Any) -> Rows:
        rows = [
            (*prediction.bbox.to_xyxy(), prediction.score.value, prediction.category.id)
            for prediction in object_prediction_list.list
        ]
        return np.array(rows, dtype=np.float32).reshape(-1, 6)

    return object_prediction_list_to_numpy


def _dispatch(theirs: Callable[[str], Callable[..., Any]]) -> Callable[[str], Callable[..., Any]]:
    def dispatch(func_type: str) -> Callable[..., Any]:
        ours = _GROUPS.get(func_type)
        if ours is None:
            return theirs(func_type)

        def run(predictions: Rows, match_metric: str = "IOU", match_threshold: float = 0.5) -> Any:
            usable = (
                match_metric in _METRICS
                and 0 < match_threshold <= 1
                and predictions.dtype in (np.float32, np.float64)
                and np.isfinite(predictions[:, :5]).all()
            )
            found = None
            if usable:
                order = _order(predictions)
                metric, threshold = match_metric.lower(), float(match_threshold)
                found = ours(predictions[order], order, metric, threshold)
            if found is None:
                return theirs(func_type)(predictions, match_metric, match_threshold)
            return found

        return run

    return dispatch


def _order(predictions: Rows) -> Ints:
    """SAHI's: by falling score, ties by rising coordinates."""
    x1, y1, x2, y2, scores = predictions[:, :5].T
    return np.lexsort((y2, x2, y1, x1, -scores))


def _group_of(rows: Rows, metric: str, threshold: float, transitive: bool) -> Ints:
    """The rank of the kept box that each box joins. Rows are in SAHI's order."""
    return nmm(rows[:, :4], rows[:, 4], None, threshold, metric, transitive)[0]


def _kept(rows: Rows, order: Ints, metric: str, threshold: float) -> list[int]:
    group = _group_of(rows, metric, threshold, transitive=False)
    return order[group == np.arange(len(group))].tolist()


def _greedy_groups(rows: Rows, order: Ints, metric: str, threshold: float) -> dict[int, list[int]]:
    """The members of a group stand in the order of the scores."""
    group = _group_of(rows, metric, threshold, transitive=False)
    return _by_kept(listed(group, np.argsort(group, kind="stable"), order))


def _transitive_groups(
    rows: Rows, order: Ints, metric: str, threshold: float
) -> dict[int, list[int]] | None:
    """The members stand in the order in which boxes of their group claim them, then by index."""
    group = _group_of(rows, metric, threshold, transitive=True)
    claimer = _claimers(rows[:, :4], group, metric, threshold)
    if claimer is None:
        return None
    return _by_kept(listed(group, np.lexsort((order, claimer, group)), order))


def _by_kept(groups: list[list[int]]) -> dict[int, list[int]]:
    return {kept: merged for kept, *merged in groups}


def _claimers(boxes: Rows, group: Ints, metric: str, threshold: float) -> Ints | None:
    """The rank of the first box of its group that each box overlaps, -1 for a kept box.

    In turn k the k-th box of each group claims boxes of its group, of all groups in one step. A few
    dozen turns claim all boxes, but for a long chain in which each box claims one: then None.
    """
    n = len(group)
    claimer = np.full(n, -1)
    by_group = np.argsort(group, kind="stable")
    first = np.searchsorted(group[by_group], np.arange(n))
    waiting = np.flatnonzero(group != np.arange(n))
    turn = 0
    while len(waiting):
        if turn == _MOST_TURNS:
            return None
        seeker = by_group[first[group[waiting]] + turn]
        claimed = _overlap(boxes[seeker], boxes[waiting], metric) >= threshold
        claimer[waiting[claimed]] = seeker[claimed]
        waiting = waiting[~claimed]
        turn += 1
    return claimer


def _overlap(boxes1: Rows, boxes2: Rows, metric: str) -> NDArray[np.floating[Any]]:
    """Of pairs of boxes with areas: the operations of `nmm`, and so its bits."""
    low, high = np.maximum(boxes1[:, :2], boxes2[:, :2]), np.minimum(boxes1[:, 2:], boxes2[:, 2:])
    inter = (high - low).clip(0).prod(1)
    area1, area2 = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes1, boxes2))
    return inter / (np.minimum(area1, area2) if metric == "ios" else area1 + area2 - inter)


_GROUPS = {"nms": _kept, "greedy_nmm": _greedy_groups, "nmm": _transitive_groups}


def _replace_all(replacements: Replacements) -> None:
    functions = {"_dispatch": ["func_type"], **dict.fromkeys(_GROUPS, _PARAMETERS)}
    combine = module_with(_CALLER, "sahi.postprocess.combine", TESTED, functions)
    functions = {_TO_ARRAY: ["object_prediction_list"]}
    lists = module_with(_CALLER, "sahi.postprocess.utils", TESTED, functions)
    replacements.replace(combine, "_dispatch", _dispatch)
    replacements.replace(lists, _TO_ARRAY, _rows_of)


REPLACEMENTS = Replacements(_replace_all)
