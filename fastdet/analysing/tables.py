# SPDX-License-Identifier: BSD-3-Clause
"""The tables of an analysis, once for the terminal and for the page: heads and rows of text."""

import math
from typing import NamedTuple

import numpy as np

from fastdet.analysing.analysis import Analysis, Side
from fastdet.analysing.coco import PROPOSALS, SIZES
from fastdet.analysing.errors import KINDS, MISSED

CELLS = 30  # classes of a confusion matrix that is shown as such


class Table(NamedTuple):
    """A table; its first `text_columns` columns are text, not numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    text_columns: int = 1


def tables(analysis: Analysis) -> list[Table]:
    """All tables of the sides, one side after the other, and the table of two."""
    found = []
    for side in analysis.sides:
        title = f"{side.name}: " if len(analysis.sides) > 1 else ""
        parts = [
            class_table(analysis, side),
            error_table(analysis, side),
            confusion_table(analysis, side),
            *([recall_table(side)] if side.recall is not None else []),
        ]
        found += [part._replace(title=title + part.title) for part in parts]
    return found + ([beside_table(analysis)] if analysis.beside is not None else [])


def class_table(analysis: Analysis, side: Side) -> Table:
    """COCO's numbers of each class, and the best score threshold."""
    annotations, coco = analysis.annotations, side.coco
    objects = _per_class(annotations.labels[~annotations.crowd], len(annotations.names))
    detections = _per_class(side.found.labels, len(annotations.names))
    head = ["class", "objects", "detections", "AP", "AP50", "AP75", "AR", "small", "medium"]
    head += ["large", "best F1", "at score", "ECE"]
    rows = []
    for c, name in enumerate(annotations.names):
        best = side.best_of_class[c]
        ece = math.nan if side.calibration is None else side.calibration.by_class[c]
        values = [coco.AP[c], coco.AP50[c], coco.AP75[c], coco.AR[c], *coco.AP_by_size[c]]
        values += [best.f1, best.threshold, ece]
        rows.append([name, f"{objects[c]:,}", f"{detections[c]:,}", *map(number, values)])
    ece = math.nan if side.calibration is None else side.calibration.ece
    means = [_mean(values) for values in (coco.AP, coco.AP50, coco.AP75, coco.AR)]
    means += [_mean(values) for values in coco.AP_by_size.T]
    means += [side.best.f1, side.best.threshold, ece]
    total = ["all", f"{objects.sum():,}", f"{detections.sum():,}", *map(number, means)]
    return Table("COCO's numbers by class; AP by size", head, [*rows, total])


def error_table(analysis: Analysis, side: Side) -> Table:
    """The AP that each kind of error costs each class, and how many there are."""
    names = analysis.annotations.names
    counts = error_counts(analysis, side)
    rows = [
        [name, number(side.cost.base[c]), *_costs(side.cost.by_class[c], counts[c])]
        for c, name in enumerate(names)
    ]
    total = ["all", number(side.cost.mean), *_costs(side.cost.total, counts.sum(axis=0))]
    iou = f"{analysis.options.iou_threshold:g}"
    title = f"AP at IoU {iou} that errors cost (their number, at all scores)"
    return Table(title, ["class", "AP", *KINDS], [*rows, total])


def error_counts(analysis: Analysis, side: Side) -> np.ndarray:
    """(C, 6) the number of errors: detections by their class, missed objects by theirs."""
    classes = len(analysis.annotations.names)
    columns = [
        _per_class(side.found.labels[side.errors.kinds == k], classes) for k in range(MISSED)
    ]
    missed = side.errors.object_kinds == MISSED
    return np.stack([*columns, _per_class(analysis.annotations.labels[missed], classes)], axis=1)


def confusion_table(analysis: Analysis, side: Side) -> Table:
    """The confusion matrix, or of many classes its largest numbers off the diagonal."""
    names, confusion = [*analysis.annotations.names, "background"], side.confusion
    matrix = confusion.matrix
    where = f"from score {confusion.score_threshold:.2f} and IoU {confusion.iou_threshold:g} on"
    if len(names) - 1 <= CELLS:
        rows = [[name, *map(str, row)] for name, row in zip(names, matrix.tolist(), strict=True)]
        title = f"What it is (rows) and what is detected (columns), {where}"
        return Table(title, ["", *names[:-1], "not found"], rows)
    others = matrix * (1 - np.eye(len(names), dtype=matrix.dtype))
    order = np.argsort(-others, axis=None, kind="stable")[:CELLS]
    cells = [divmod(int(cell), len(names)) for cell in order if others.flat[cell]]
    rows = [[names[i], names[j] if j < len(names) - 1 else "not found"] for i, j in cells]
    rows = [[*row, f"{others[cell]:,}"] for row, cell in zip(rows, cells, strict=True)]
    title = f"The most frequent confusions, {where}"
    return Table(title, ["what it is", "what is detected", "number"], rows, 2)


def recall_table(side: Side) -> Table:
    """The average recall of the proposals by the size of the objects."""
    assert side.recall is not None
    rows = [
        [f"{most:,}", *map(number, row)] for most, row in zip(PROPOSALS, side.recall, strict=True)
    ]
    return Table("Average recall of the proposals of an image", ["proposals", *SIZES], rows)


def beside_table(analysis: Analysis) -> Table:
    """The second detector beside the first, class by class."""
    assert analysis.beside is not None
    (first, second), names = analysis.sides, analysis.annotations.names
    gained, lost = (
        _per_class(analysis.annotations.labels[rows], len(names))
        for rows in (analysis.beside.only_second, analysis.beside.only_first)
    )
    change = second.coco.AP - first.coco.AP
    costs = second.cost.by_class - first.cost.by_class
    rows = [
        [
            name,
            *(number(side.coco.AP[c]) for side in analysis.sides),
            signed(change[c]),
            *(f"{counts[c]:,}" for counts in (gained, lost)),
            *map(signed, costs[c]),
        ]
        for c, name in enumerate(names)
    ]
    total = ["all", number(_mean(first.coco.AP)), number(_mean(second.coco.AP))]
    total += [signed(_mean(change)), f"{gained.sum():,}", f"{lost.sum():,}"]
    total += map(signed, second.cost.total - first.cost.total)
    head = ["class", "AP first", "AP second", "difference", "only second finds", "only first finds"]
    title = "The second beside the first; what its errors cost more (+) or less (-)"
    return Table(title, [*head, *KINDS], [*rows, total])


def number(value: float) -> str:
    """Three decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """Three decimals with a sign; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:+.3f}"


def _costs(costs: np.ndarray, counts: np.ndarray) -> list[str]:
    return [f"{number(cost)} ({n:,})" for cost, n in zip(costs, counts.tolist(), strict=True)]


def _mean(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else math.nan


def _per_class(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels, minlength=classes + 1)[1:]
