# SPDX-License-Identifier: BSD-3-Clause
"""The result of an analysis in a few sentences, each computed from its numbers.

The loss of a class is the sum of the AP that the six kinds of error cost it. What is counted on
pictures (objects that are found as another class, detections where nothing is) is counted from the
score threshold on.
"""

import math

import numpy as np

from fastdet.analysing.analysis import Analysis, Side
from fastdet.analysing.bootstrap import Difference
from fastdet.analysing.errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    KINDS,
    LOCALISATION,
    MISSED,
)
from fastdet.data.annotations import Annotations

SECOND = 0.25  # of the loss of a class, from which its second kind of error is named too
FEW = 5  # objects
LOOSE = 0.05  # of AP that is lost at higher IoUs alone
AREAS = (32**2, 96**2)


def sentences(analysis: Analysis, weakest: int) -> list[str]:
    """What the analysis says: of the whole, of the weakest classes, and of two detectors.

    Args:
        analysis: of one detector or two.
        weakest: number of classes that have a sentence, those with the lowest AP.
    """
    said = []
    for place, side in zip(("First: ", "Second: "), analysis.sides, strict=False):
        start = place if len(analysis.sides) > 1 else ""
        said += [start + text for text in _overall(analysis, side)]
    if analysis.beside is not None:
        said += _of_two(analysis)
    annotations, last = analysis.annotations, analysis.sides[-1]
    start = "Second: " if len(analysis.sides) > 1 else ""
    labels = weak_classes(annotations, last, weakest)
    return said + [start + of_class(annotations, last, label) for label in labels]


def weak_classes(annotations: Annotations, side: Side, most: int) -> list[int]:
    """The labels with the lowest AP, of those that have objects.

    Those with fewer than `FEW` objects come last: their AP is mostly chance.
    """
    counts = np.bincount(
        annotations.labels[~annotations.crowd], minlength=len(annotations.names) + 1
    )[1:]
    order = np.lexsort((side.coco.AP, counts < FEW))
    return [int(c) + 1 for c in order if counts[c] > 0][:most]


def of_class(annotations: Annotations, side: Side, label: int) -> str:
    """What a class loses most AP by."""
    objects = (annotations.labels == label) & ~annotations.crowd
    name, costs = annotations.names[label - 1], side.cost.by_class[label - 1]
    start = f"{name}: AP {side.coco.AP[label - 1]:.3f}, {_count(objects.sum(), 'object')}."
    loss = float(costs.sum())
    if not loss > 0:
        text = f"{start} No kind of error costs it AP at IoU {side.confusion.iou_threshold:g}"
        base = side.cost.base[label - 1]
        if base - side.coco.AP[label - 1] > LOOSE:
            return f"{text}, where its AP is {base:.3f}: what it lacks is tighter boxes."
        return f"{text}."
    order = np.argsort(-costs, kind="stable").tolist()
    kinds = [kind for kind in order[:2] if costs[kind] > 0]
    kinds = [kind for i, kind in enumerate(kinds) if i == 0 or costs[kind] >= SECOND * loss]
    texts = [
        f"{100 * costs[kind] / loss:.0f} % of its loss is {KINDS[kind]} "
        f"({_detail(annotations, side, label, kind)})"
        for kind in kinds
    ]
    return f"{start} {'; '.join(texts)}."


def _detail(annotations: Annotations, side: Side, label: int, kind: int) -> str:
    name = annotations.names[label - 1]
    if kind == CLASSIFICATION:
        return _confusions(annotations, side, label)
    of_kind = (side.found.labels == label) & (side.errors.kinds == kind)
    own = of_kind & side.shown()
    low = not own.any()  # all are below the score threshold
    own = of_kind if low else own
    number, at = int(own.sum()), f", all below score {side.score_threshold:.2f}" if low else ""
    if kind == LOCALISATION:
        return f"{_count(number, 'detection')} badly placed{at}"
    if kind == BOTH:
        return f"{_count(number, 'detection')} of another class and badly placed{at}"
    if kind == DUPLICATE:
        return f"{_count(number, 'second detection')} of an object that is found{at}"
    if kind == BACKGROUND:
        having = np.bincount(
            annotations.image_index[annotations.labels == label],
            minlength=len(annotations.image_ids),
        )
        without = int((having[side.found.image_index[own]] == 0).sum())
        return (
            f"{_count(number, 'detection')} where nothing is, {without} of them in pictures "
            f"without {name}{at}"
        )
    missed = (side.errors.object_kinds == MISSED) & (annotations.labels == label)
    sizes = np.bincount(np.digitize(annotations.areas[missed], AREAS), minlength=3).tolist()
    return (
        f"{_count(missed.sum(), 'object')} without a detection at any score: {sizes[0]} small, "
        f"{sizes[1]} medium, {sizes[2]} large"
    )


def _confusions(annotations: Annotations, side: Side, label: int) -> str:
    """The classes that a class is taken for most, and that are taken for it."""
    matrix, at = side.confusion.matrix[:-1, :-1], label - 1
    texts = []
    for counts, one, several in (
        (matrix[at], "of its objects is found as", "of its objects are found as"),
        (matrix[:, at], "of its detections is", "of its detections are"),
    ):
        others = counts.copy()
        others[at] = 0
        other = int(others.argmax())
        if others[other]:
            verb = one if others[other] == 1 else several
            texts.append(f"{others[other]} {verb} {annotations.names[other]}")
    if not texts:
        return f"by detections with scores below {side.score_threshold:.2f}"
    return ", ".join(texts)


def _overall(analysis: Analysis, side: Side) -> list[str]:
    annotations = analysis.annotations
    objects, best = int((~annotations.crowd).sum()), side.best
    stats = side.coco.stats
    iou = f"{analysis.options.iou_threshold:g}"
    said = [
        f"AP {_value(stats['AP'])}, AP50 {_value(stats['AP50'])} on "
        f"{_count(len(annotations.image_ids), 'picture')} with {_count(objects, 'object')}."
    ]
    costs = side.cost.total
    if not np.isnan(costs).any() and costs.max() > 0:
        worst = np.argsort(-costs, kind="stable")[:2].tolist()
        texts = [f"{KINDS[kind]} {costs[kind]:.3f}" for kind in worst if costs[kind] > 0]
        said.append(f"At IoU {iou} most AP is lost by {' and '.join(texts)}.")
    if best.f1 == 0:
        said.append(f"No detection finds an object of its class at IoU {iou}.")
    elif not math.isnan(best.f1):
        said.append(
            f"The best score threshold for all classes is {best.threshold:.3f}: F1 {best.f1:.3f}, "
            f"precision {best.precision:.3f}, recall {best.recall:.3f}."
        )
    calibration = side.calibration
    if calibration is None:
        said.append("Scores lie outside 0 to 1, so they are no probabilities to compare.")
    elif calibration.counts.sum():
        weights = calibration.counts / calibration.counts.sum()
        gap = float(np.nansum(weights * (calibration.scores - calibration.precisions)))
        how = "higher" if gap > 0 else "lower"
        said.append(
            f"Scores are on average {abs(gap):.3f} {how} than the precision "
            f"(calibration error {calibration.ece:.3f})."
        )
    if side.recall is not None and not np.isnan(side.recall).all():
        lowest = int(np.nanargmin(side.recall[-1, 1:])) + 1
        sizes = ("all", "small", "medium", "large")
        said.append(
            f"The average recall of 1000 proposals is {side.recall[-1, 0]:.3f}, lowest for "
            f"{sizes[lowest]} objects, {side.recall[-1, lowest]:.3f}."
        )
    return said


def _of_two(analysis: Analysis) -> list[str]:
    assert analysis.beside is not None
    beside, (first, second) = analysis.beside, analysis.sides
    objects = int((~analysis.annotations.crowd).sum())
    gained, lost = int(beside.only_second.sum()), int(beside.only_first.sum())
    said = [
        f"The second finds {_count(gained, 'object')} that the first misses, and misses {lost} "
        f"that the first finds, of {objects}."
    ]
    number = analysis.options.resamplings
    ap = f"AP at IoU {analysis.options.iou_threshold:g}"
    said.append(difference_sentence(f"has {{}} {ap}", beside.AP, number, 3))
    said.append(difference_sentence("finds {} objects", beside.objects, number, 0))
    change = second.coco.AP - first.coco.AP
    if not np.isnan(change).all():
        names, up, down = analysis.annotations.names, np.nanargmax(change), np.nanargmin(change)
        texts = []
        if change[up] > 0:
            texts.append(f"gains most AP at {names[up]} ({change[up]:+.3f})")
        if change[down] < 0:
            texts.append(f"loses most at {names[down]} ({change[down]:+.3f})")
        if texts:
            said.append(f"The second {' and '.join(texts)}.")
    return said


def difference_sentence(says: str, value: Difference, resamplings: int, digits: int) -> str:
    """A difference, its range, and what that means.

    Args:
        says: what the second does, with {} for how much more or less.
        value: of the second to the first.
        resamplings: their number.
        digits: after the point.
    """
    much = f"{abs(value.value):.{digits}f} {'less' if value.value < 0 else 'more'}"
    text = f"The second {says.format(much)} than the first"
    if math.isnan(value.low):
        return f"{text}; without resamplings of the pictures it cannot be told from chance."
    means = "more than chance" if value.is_clear else "it may be chance"
    return (
        f"{text}; in 95 % of {resamplings} resamplings of the pictures the difference lies between "
        f"{value.low:+.{digits}f} and {value.high:+.{digits}f}: {means}."
    )


def _value(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
