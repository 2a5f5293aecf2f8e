# SPDX-License-Identifier: BSD-3-Clause
"""The tables of an analysis, once for the terminal and for the page: heads and rows of text."""

import math
from typing import NamedTuple

import numpy as np

from fastdet.analysing.analysis import Analysis, Side
from fastdet.analysing.coco import PROPOSALS, SIZES
from fastdet.analysing.errors import MISSED

MATRIX = 30  # classes of a confusion matrix that is shown as such
SHORT = ("classif.", "localis.", "both", "duplic.", "backgr.", "missed")  # for KINDS
PLACES = ("First: ", "Second: ")  # before the title of each of two sides
CONFUSIONS = 10  # that are listed


class Table(NamedTuple):
    """A table.

    Attributes:
        title, head, rows: texts.
        text_columns: how many of the first columns are text, not numbers.
        for_wide: columns that a narrow terminal leaves out.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    for_wide: tuple[str, ...] = ()


def tables(analysis: Analysis) -> list[Table]:
    """All tables of the sides, one side after the other, and those of two."""
    found = []
    for place, side in zip(PLACES, analysis.sides, strict=False):
        parts = [
            class_table(analysis, side),
            cost_table(analysis, side),
            count_table(analysis, side),
            confusion_table(analysis, side),
            *([recall_table(side)] if side.recall is not None else []),
        ]
        found += [_of_side(analysis, place, part) for part in parts]
    return found + ([] if analysis.beside is None else beside_tables(analysis))


def shown_classes(analysis: Analysis, sides: list[Side]) -> list[int]:
    """The positions of the classes that have an object or a detection."""
    count = np.zeros(len(analysis.annotations.names), np.int64)
    for labels in (analysis.annotations.labels, *(side.found.labels for side in sides)):
        count += _per_class(labels, len(count))
    return np.flatnonzero(count).tolist()


def class_table(analysis: Analysis, side: Side) -> Table:
    """COCO's numbers of each class, and the best score threshold."""
    annotations, coco = analysis.annotations, side.coco
    objects = _per_class(annotations.labels[~annotations.crowd], len(annotations.names))
    detections = _per_class(side.found.labels, len(annotations.names))
    head = ["class", "objects", "detections", "AP", "AP50", "AP75", "AR", "small", "medium"]
    head += ["large", "F1", "score", "ECE"]
    rows = []
    for c in shown_classes(analysis, [side]):
        best = side.best_of_class[c]
        ece = math.nan if side.calibration is None else side.calibration.by_class[c]
        values = [coco.AP[c], coco.AP50[c], coco.AP75[c], coco.AR[c], *coco.AP_by_size[c]]
        values += [best.f1, best.threshold, ece]
        counts = [f"{objects[c]:,}", f"{detections[c]:,}"]
        rows.append([annotations.names[c], *counts, *map(number, values)])
    ece = math.nan if side.calibration is None else side.calibration.ece
    means = [_mean(values) for values in (coco.AP, coco.AP50, coco.AP75, coco.AR)]
    means += [_mean(values) for values in coco.AP_by_size.T]
    means += [side.best.f1, side.best.threshold, ece]
    total = ["all", f"{objects.sum():,}", f"{detections.sum():,}", *map(number, means)]
    title = "Objects, detections, AP, AP by size, and the score with the best F1"
    return Table(title, head, [*rows, total], for_wide=("AP75", "AR", "ECE"))


def cost_table(analysis: Analysis, side: Side) -> Table:
    """The AP that each kind of error costs each class."""
    names = analysis.annotations.names
    rows = [
        [names[c], number(side.cost.base[c]), *map(number, side.cost.by_class[c])]
        for c in shown_classes(analysis, [side])
    ]
    total = ["all", number(side.cost.mean), *map(number, side.cost.total)]
    title = f"AP at IoU {analysis.options.iou_threshold:g} that errors cost"
    return Table(title, ["class", "AP", *SHORT], [*rows, total])


def count_table(analysis: Analysis, side: Side) -> Table:
    """The number of errors of each class."""
    names, counts = analysis.annotations.names, error_counts(analysis, side)
    rows = [
        [names[c], *(f"{n:,}" for n in counts[c].tolist())] for c in shown_classes(analysis, [side])
    ]
    total = ["all", *(f"{n:,}" for n in counts.sum(axis=0).tolist())]
    return Table("Number of errors, at all scores", ["class", *SHORT], [*rows, total])


def error_counts(analysis: Analysis, side: Side) -> np.ndarray:
    """(C, 6) the number of errors: detections by their class, missed objects by theirs."""
    classes = len(analysis.annotations.names)
    columns = [
        _per_class(side.found.labels[side.errors.kinds == kind], classes) for kind in range(MISSED)
    ]
    missed = side.errors.object_kinds == MISSED
    return np.stack([*columns, _per_class(analysis.annotations.labels[missed], classes)], axis=1)


def confusion_table(analysis: Analysis, side: Side) -> Table:
    """The largest numbers of the confusion matrix off its diagonal."""
    names, matrix = [*analysis.annotations.names, "nothing"], side.confusion.matrix
    others = matrix * (1 - np.eye(len(names), dtype=matrix.dtype))
    order = np.argsort(-others, axis=None, kind="stable")[:CONFUSIONS]
    cells = [divmod(int(cell), len(names)) for cell in order if others.flat[cell]]
    rows = [[names[i], names[j], f"{others[i, j]:,}"] for i, j in cells]
    title = f"The most frequent confusions, {_from(side)}"
    return Table(title, ["what it is", "what is detected", "number"], rows, 2)


def confusion_matrices(analysis: Analysis) -> list[Table]:
    """The whole matrix of each side, where it can be read."""
    matrices = [confusion_matrix(analysis, side) for side in analysis.sides]
    return [
        _of_side(analysis, place, matrix)
        for place, matrix in zip(PLACES, matrices, strict=False)
        if matrix is not None
    ]


def confusion_matrix(analysis: Analysis, side: Side) -> Table | None:
    """The whole matrix; None where there are too many classes to read it."""
    shown = shown_classes(analysis, [side])
    if len(shown) > MATRIX:
        return None
    names, cells = [analysis.annotations.names[c] for c in shown], [*shown, -1]
    rows = [
        [name, *(f"{n:,}" for n in side.confusion.matrix[c, cells].tolist())]
        for name, c in zip([*names, "nothing"], cells, strict=True)
    ]
    title = f"What it is (rows) and what is detected (columns), {_from(side)}"
    return Table(title, ["", *names, "nothing"], rows)


def recall_table(side: Side) -> Table:
    """The average recall of the proposals by the size of the objects."""
    assert side.recall is not None
    rows = [
        [f"{most:,}", *map(number, row)] for most, row in zip(PROPOSALS, side.recall, strict=True)
    ]
    return Table("Average recall of the proposals of an image", ["proposals", *SIZES], rows)


def beside_tables(analysis: Analysis) -> list[Table]:
    """The second detector beside the first, class by class: what it finds, what errors cost it."""
    assert analysis.beside is not None
    (first, second), names = analysis.sides, analysis.annotations.names
    gained, lost = (
        _per_class(analysis.annotations.labels[rows], len(names))
        for rows in (analysis.beside.only_second, analysis.beside.only_first)
    )
    shown = shown_classes(analysis, analysis.sides)
    change, costs = second.coco.AP - first.coco.AP, second.cost.by_class - first.cost.by_class
    rows = [
        [
            names[c],
            *(number(side.coco.AP[c]) for side in analysis.sides),
            signed(change[c]),
            *(f"{counts[c]:,}" for counts in (gained, lost)),
        ]
        for c in shown
    ]
    total = ["all", number(_mean(first.coco.AP)), number(_mean(second.coco.AP))]
    total += [signed(_mean(change)), f"{gained.sum():,}", f"{lost.sum():,}"]
    head = ["class", "AP first", "AP second", "difference", "only second", "only first"]
    of_costs = [[names[c], *map(signed, costs[c])] for c in shown]
    of_costs.append(["all", *map(signed, second.cost.total - first.cost.total)])
    more = "AP that errors cost the second more (+) or less (-) than the first"
    return [
        Table("AP of both, and the objects that only one of them finds", head, [*rows, total]),
        Table(more, ["class", *SHORT], of_costs),
    ]


def number(value: float) -> str:
    """Three decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """Three decimals with a sign, which 0 does not have; a dash for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _of_side(analysis: Analysis, place: str, table: Table) -> Table:
    return table._replace(title=place + table.title) if len(analysis.sides) > 1 else table


def _from(side: Side) -> str:
    confusion = side.confusion
    return f"from score {confusion.score_threshold:.3f} and IoU {confusion.iou_threshold:g} on"


def _mean(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else math.nan


def _per_class(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels, minlength=classes + 1)[1:]
