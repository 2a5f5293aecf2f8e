# SPDX-License-Identifier: BSD-3-Clause
"""The analysis of a detector on a split, or of two on the same pictures, without any output."""

import math
from dataclasses import dataclass

import numpy as np

from fastdet.analysing.bootstrap import Difference, difference, resampled_ap, resamplings
from fastdet.analysing.coco import IOU_THRESHOLDS, CocoNumbers, coco_numbers
from fastdet.analysing.confusion import Confusion, confusion_of
from fastdet.analysing.detections import Found, IouType, check_iou_type
from fastdet.analysing.errors import (
    CORRECT,
    IGNORED,
    Cost,
    Errors,
    Objects,
    cost_of,
    find_errors,
    objects_from,
)
from fastdet.analysing.matching import Matches, match, overlapping
from fastdet.analysing.scores import BestF1, Calibration, best_f1, calibration_of
from fastdet.data.annotations import Annotations

UNKNOWN_SCORE = 0.5  # threshold where no detection is correct
FEWEST = 11  # detections of a class in an image; COCO counts the best 1 and 10 too


@dataclass(frozen=True)
class AnalysisOptions:
    """What counts as found, and how much is computed.

    Attributes:
        iou_type: compare boxes or masks.
        iou_threshold: from which IoU on an object is found, of `IOU_THRESHOLDS`.
        background_iou: up to which IoU with any object a detection is background.
        score_threshold: from which on a detection counts in the confusion matrix, on pictures and
            among two detectors; None: each detector's own with the best F1.
        max_detections: of a class in an image.
        bins: ranges of scores for the calibration.
        resamplings: of the pictures, for the range of a difference.
    """

    iou_type: IouType = "bbox"
    iou_threshold: float = 0.5
    background_iou: float = 0.1
    score_threshold: float | None = None
    max_detections: int = 100
    bins: int = 10
    resamplings: int = 500

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        check_iou_type(self.iou_type)
        if round(self.iou_threshold, 6) not in IOU_THRESHOLDS:
            raise ValueError(
                f"iou_threshold: expected one of {', '.join(map(str, IOU_THRESHOLDS))}, got "
                f"{self.iou_threshold}"
            )
        if not 0 < self.background_iou < self.iou_threshold:
            raise ValueError(
                "background_iou: expected a number above 0 and below iou_threshold, "
                f"{self.iou_threshold}, got {self.background_iou}"
            )
        if self.score_threshold is not None and not math.isfinite(self.score_threshold):
            raise ValueError(
                f"score_threshold: expected a finite number, got {self.score_threshold}"
            )
        for name, least in (("max_detections", FEWEST), ("bins", 1), ("resamplings", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}: expected a number from {least} on, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class Side:
    """What is known of one detector.

    Attributes:
        name: for tables and sentences.
        found: its detections, not more of a class in an image than count.
        matches, errors, cost: at the IoU threshold of the options.
        coco: COCO's numbers.
        best: the score threshold with the best F1 of all classes together.
        best_of_class: (C,) that of each class.
        score_threshold: that is used.
        objects: what keeps each object from being found by the detections from this score on.
        confusion: from this score on.
        calibration: None where scores lie outside [0, 1].
        recall: see `proposal_recall`; None where there are no proposals.
    """

    name: str
    found: Found
    matches: Matches
    errors: Errors
    cost: Cost
    coco: CocoNumbers
    best: BestF1
    best_of_class: list[BestF1]
    score_threshold: float
    objects: Objects
    confusion: Confusion
    calibration: Calibration | None
    recall: np.ndarray | None = None

    def shown(self) -> np.ndarray:
        """(D,) bool; the detections that count at the score threshold: not those in crowds."""
        return (self.found.scores >= self.score_threshold) & (self.errors.kinds > IGNORED)

    def finds(self) -> np.ndarray:
        """(A,) bool; the objects that a detection finds at the score threshold."""
        return self.objects.kinds == CORRECT

    def wrong(self, annotations: Annotations, label: int | None = None) -> np.ndarray:
        """(I,) the number of errors in each image: wrong detections and objects not found.

        Args:
            annotations: of the split.
            label: count only those of a class.
        """
        detections = self.shown() & (self.errors.kinds > CORRECT)
        objects = ~self.finds() & ~annotations.crowd
        if label is not None:
            detections &= self.found.labels == label
            objects &= annotations.labels == label
        images = len(annotations.image_ids)
        of_detections = np.bincount(self.found.image_index[detections], minlength=images)
        return of_detections + np.bincount(annotations.image_index[objects], minlength=images)


@dataclass(frozen=True)
class Beside:
    """Two detectors on the same pictures.

    Attributes:
        only_first, only_second: (A,) bool; the objects that one finds and the other misses, at
            their score thresholds.
        AP: the difference of the AP at the IoU threshold, second less first.
        objects: that of the objects found.
    """

    only_first: np.ndarray
    only_second: np.ndarray
    AP: Difference
    objects: Difference


@dataclass(frozen=True)
class Analysis:
    """All that is known; `annotations` has only the images that were looked at.

    Attributes:
        annotations: of the split.
        split: its name.
        options: of the analysis.
        sides: one detector or two.
        beside: the difference of two.
    """

    annotations: Annotations
    split: str
    options: AnalysisOptions
    sides: list[Side]
    beside: Beside | None = None


def analyse_side(
    annotations: Annotations,
    found: Found,
    options: AnalysisOptions,
    name: str = "",
    recall: np.ndarray | None = None,
) -> Side:
    """Everything about one detector.

    Args:
        annotations: of the split, with masks where they are compared.
        found: the detections in the order of COCO (`Found.sorted`).
        options: of the analysis.
        name: of the detector.
        recall: of its proposals.
    """
    options.check()
    classes, found = len(annotations.names), found.best(options.max_detections)
    masks = options.iou_type == "segm"
    pairs = overlapping(annotations, found, options.background_iou, masks)
    matches = match(annotations, found, pairs, options.iou_threshold)
    errors = find_errors(
        annotations, found, pairs, matches, options.iou_threshold, options.background_iou
    )
    counted = ~matches.ignored
    scores, labels, correct = found.scores[counted], found.labels[counted], matches.objects >= 0
    correct, ious = correct[counted], matches.ious[counted]
    objects = annotations.labels[~annotations.crowd]
    best = best_f1(scores, correct, len(objects))
    of_class = [
        best_f1(scores[labels == c], correct[labels == c], int((objects == c).sum()))
        for c in range(1, classes + 1)
    ]
    threshold = options.score_threshold
    if threshold is None:
        threshold = best.threshold if best.f1 > 0 else UNKNOWN_SCORE
    return Side(
        name or str(found.path),
        found,
        matches,
        errors,
        cost_of(annotations, found, errors),
        coco_numbers(
            annotations, found, options.iou_type, options.max_detections, options.iou_threshold
        ),
        best,
        of_class,
        threshold,
        objects_from(annotations, found, matches, errors.kinds, errors.about, threshold),
        confusion_of(annotations, found, pairs, matches, threshold, options.iou_threshold),
        calibration_of(scores, labels, correct, ious, classes, options.bins),
        recall,
    )


def compare(annotations: Annotations, first: Side, second: Side, number: int) -> Beside:
    """Two detectors on the same pictures.

    Args:
        annotations: of the split.
        first, second: of `analyse_side` with these annotations.
        number: of resamplings.
    """
    finds = [side.finds() & ~annotations.crowd for side in (first, second)]
    images = len(annotations.image_ids)
    weights = resamplings(images, number) if images else np.zeros((0, 0), np.int32)
    aps = [resampled_ap(annotations, s.found, s.matches, weights) for s in (first, second)]
    gains = [np.bincount(annotations.image_index[one], minlength=images) for one in finds]
    return Beside(
        finds[0] & ~finds[1],
        finds[1] & ~finds[0],
        difference(second.cost.mean - first.cost.mean, aps[1] - aps[0]),
        difference(
            float(finds[1].sum() - finds[0].sum()), (weights @ (gains[1] - gains[0])).astype(float)
        ),
    )
