# SPDX-License-Identifier: BSD-3-Clause
"""What is wrong with each detection and each object: TIDE's six kinds, and the AP that each costs.

A detection that finds no object (a false positive) is one of five kinds, an object that no
detection explains is the sixth. The AP that a kind costs is the AP that the detector would gain if
the errors of this kind were corrected and all else stayed as it is.

Follows Bolya et al., TIDE, ECCV 2020, and its code. It differs where that code surprises:
- A crowd is no object. A detection in one is ignored and no error.
- The mean is taken over the classes that have objects, as COCO does.
- A second detection of an object whose IoU is exactly the threshold is a duplicate.
- Where all objects of a class are missed, this costs the whole AP of 1; TIDE says 0.
"""

from typing import NamedTuple

import numpy as np

from fastdet.analysing.detections import Found
from fastdet.analysing.matching import NONE, Matches, Pairs
from fastdet.data.annotations import Annotations

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
MEANINGS = {
    "classification": "at an object of another class",
    "localisation": "at an object of its class, but with too small an IoU",
    "both": "another class and too small an IoU",
    "duplicate": "an object of its class that a better detection has found",
    "background": "where no object is",
    "missed": "an object without a detection of the first two kinds",
}
CORRECT, CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(-1, 6)
IGNORED = -2
RECALLS = np.linspace(0.0, 1.0, 101)


class Errors(NamedTuple):
    """The kind of each detection and each object.

    Attributes:
        kinds: (D,) index in `KINDS`; CORRECT or IGNORED.
        about: (D,) the object that a correct detection finds, or that the first two kinds and a
            duplicate are about; else -1.
        object_kinds: (A,) what keeps each object from being found: CORRECT if it is found,
            CLASSIFICATION or LOCALISATION if a detection would find it but for that, MISSED;
            IGNORED for a crowd.
        fixing: (A,) for the second case the best of these detections, else -1.
    """

    kinds: np.ndarray
    about: np.ndarray
    object_kinds: np.ndarray
    fixing: np.ndarray


class Objects(NamedTuple):
    """What keeps each object from being found.

    Attributes:
        kinds: (A,) see `Errors.object_kinds`.
        by: (A,) the detection that finds it, or the best one that would find it but for its class
            or its place; else -1.
    """

    kinds: np.ndarray
    by: np.ndarray


class Cost(NamedTuple):
    """The AP that errors cost, at the IoU threshold of the matches.

    Attributes:
        base: (C,) AP of each class; NaN where it has no objects.
        by_class: (C, 6) the AP that each kind costs each class; NaN as above.
        total: (6,) what each costs the mean of the classes.
    """

    base: np.ndarray
    by_class: np.ndarray
    total: np.ndarray

    @property
    def mean(self) -> float:
        """The mean AP of the classes that have objects; NaN if none has."""
        shown = self.base[~np.isnan(self.base)]
        return float(shown.mean()) if len(shown) else float("nan")


def find_errors(
    annotations: Annotations,
    found: Found,
    pairs: Pairs,
    matches: Matches,
    iou_threshold: float,
    background_iou: float,
) -> Errors:
    """The kind of every detection and every object.

    Args:
        annotations: of the split.
        found: the detections.
        pairs: those with an IoU of at least background_iou.
        matches: at iou_threshold.
        iou_threshold: from which on an object is found.
        background_iou: up to which a detection is background.
    """
    kinds, about = np.full(len(found), BACKGROUND), matches.objects.copy()
    pairs = pairs.where(~annotations.crowd[pairs.objects])
    kinds[pairs.detections[pairs.ious > background_iou]] = BOTH
    same = found.labels[pairs.detections] == annotations.labels[pairs.objects]
    own, other = pairs.where(same).best(), pairs.where(~same).best()
    second = own.ious >= iou_threshold
    # TIDE's order: of two kinds that fit, the later line here is taken.
    for chosen, kind in (
        (own.where(second), DUPLICATE),
        (other.where(other.ious >= iou_threshold), CLASSIFICATION),
        (own.where(~second & (own.ious >= background_iou)), LOCALISATION),
    ):
        kinds[chosen.detections] = kind
        about[chosen.detections] = chosen.objects
    correct = matches.objects >= 0
    kinds[correct], about[correct] = CORRECT, matches.objects[correct]
    kinds[matches.ignored], about[matches.ignored] = IGNORED, NONE

    objects = objects_from(annotations, found, matches, kinds, about)
    return Errors(kinds, about, objects.kinds, np.where(objects.kinds >= 0, objects.by, NONE))


def objects_from(
    annotations: Annotations,
    found: Found,
    matches: Matches,
    kinds: np.ndarray,
    about: np.ndarray,
    score: float = -np.inf,
) -> Objects:
    """What keeps each object from being found if only detections from a score on count.

    It equals `find_errors` on these detections alone (tested): better detections choose first, so
    that worse ones change nothing for them.

    Args:
        annotations: of the split.
        found: the detections.
        matches: of all of them.
        kinds, about: see `Errors`.
        score: from which on a detection counts.
    """
    matched = matches.detections
    is_found = (matched >= 0) & (np.append(found.scores, -np.inf)[matched] >= score)
    would = np.isin(kinds, (CLASSIFICATION, LOCALISATION)) & (found.scores >= score)
    rows = np.flatnonzero(would)
    rows = rows[~is_found[about[rows]]]
    rows = rows[np.argsort(-found.scores[rows], kind="stable")[::-1]]
    by = np.where(is_found, matched, NONE)
    by[about[rows]] = rows  # the best comes last
    of_objects = np.where(by >= 0, np.append(kinds, NONE)[by], MISSED)
    of_objects[annotations.crowd] = IGNORED
    return Objects(of_objects, by)


def cost_of(annotations: Annotations, found: Found, errors: Errors) -> Cost:
    """The AP that each kind of error costs, overall and by class."""
    classes = len(annotations.names)
    counts = np.bincount(annotations.labels[~annotations.crowd], minlength=classes + 1)[1:]
    missed = errors.object_kinds == MISSED
    missing = np.bincount(annotations.labels[missed], minlength=classes + 1)[1:]
    order = np.argsort(-found.scores, kind="stable")
    kinds, labels = errors.kinds[order], found.labels[order]
    base = average_precisions(labels[kinds > IGNORED], kinds[kinds > IGNORED] == CORRECT, counts)
    gains = []
    for kind in range(len(KINDS)):
        stays, correct, of = kinds > IGNORED, kinds == CORRECT, labels
        if kind in (CLASSIFICATION, LOCALISATION):
            objects = errors.about[order]
            fixing = (kinds == kind) & (np.append(errors.fixing, NONE)[objects] == order)
            of = np.where(fixing, np.append(annotations.labels, 0)[objects], labels)
            correct = correct | fixing
        stays = stays & ((kinds != kind) | correct)
        left = counts - missing if kind == MISSED else counts
        fixed = average_precisions(of[stays], correct[stays], left)
        fixed = np.where((counts > 0) & (left == 0), 1.0, fixed)
        gains.append(fixed - base)
    by_class = np.stack(gains, axis=1) if classes else np.zeros((0, len(KINDS)))
    shown = counts > 0
    total = by_class[shown].mean(axis=0) if shown.any() else np.full(len(KINDS), np.nan)
    # Below 0 is an effect of the 101 points of recall.
    return Cost(base, np.fmax(by_class, 0.0) + 0 * by_class, np.maximum(total, 0.0))


def average_precisions(labels: np.ndarray, correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(C,) COCO's AP of each class at one IoU threshold; NaN for a class without objects.

    Args:
        labels: (D,) 1..C, best score first.
        correct: (D,) bool.
        counts: (C,) objects of each class.
    """
    order = np.argsort(labels, kind="stable")
    correct = correct[order]
    bounds = np.searchsorted(labels[order], np.arange(1, len(counts) + 2))
    return np.array(
        [
            average_precision(correct[start:end], count)
            for start, end, count in zip(bounds[:-1], bounds[1:], counts.tolist(), strict=True)
        ]
    )


def average_precision(correct: np.ndarray, count: int) -> float:
    """COCO's AP: the mean of the precisions at 101 recalls.

    Args:
        correct: (D,) bool, best score first.
        count: number of objects; 0 gives NaN.
    """
    if count <= 0:
        return float("nan")
    hits = np.cumsum(correct)
    precision = hits / (np.arange(1, len(correct) + 1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / count, RECALLS, "left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean())
