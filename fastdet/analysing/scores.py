# SPDX-License-Identifier: BSD-3-Clause
"""Which score to ask for, and whether scores are probabilities.

`best_f1` finds the score threshold with the highest F1. Calibration compares the scores of the
detections in each of a number of equal ranges with how many of them are correct (the expected
calibration error, ECE), and with how well they lie too: the localisation-aware one (LaECE) of
Oksuz et al., Towards Building Self-Aware Object Detectors, CVPR 2023.
"""

from typing import NamedTuple

import numpy as np


class BestF1(NamedTuple):
    """The score threshold with the highest F1; all are NaN where there is no object."""

    threshold: float
    f1: float
    precision: float
    recall: float


class Calibration(NamedTuple):
    """How far scores are from being probabilities.

    Attributes:
        bounds: (B + 1,) of the ranges of scores.
        counts: (B,) detections in each range.
        scores: (B,) their mean score; NaN for none.
        precisions: (B,) the part of them that is correct; NaN for none.
        ece: mean distance of score and precision, weighted by the detections.
        by_class: (C,) the ECE of each class; NaN for a class without detections.
        laece: mean over the classes of the distance of score and precision x mean IoU.
    """

    bounds: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    precisions: np.ndarray
    ece: float
    by_class: np.ndarray
    laece: float


def best_f1(scores: np.ndarray, correct: np.ndarray, count: int) -> BestF1:
    """The score threshold with the highest F1; of several the highest.

    Args:
        scores: (D,) in any order.
        correct: (D,) bool.
        count: number of objects.
    """
    if count <= 0:
        return BestF1(*[float("nan")] * 4)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(correct[order])
    if not len(scores):
        return BestF1(float("nan"), 0.0, float("nan"), 0.0)
    numbers = np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (numbers + count)
    f1[:-1][scores[1:] == scores[:-1]] = -1.0  # a threshold takes all equal scores or none
    at = int(np.argmax(f1))
    return BestF1(
        float(scores[at]), float(f1[at]), float(hits[at] / numbers[at]), float(hits[at] / count)
    )


def calibration_of(
    scores: np.ndarray,
    labels: np.ndarray,
    correct: np.ndarray,
    ious: np.ndarray,
    classes: int,
    bins: int,
) -> Calibration | None:
    """The calibration of the detections; None where a score is outside [0, 1].

    Args:
        scores, labels: (D,) of the detections that count, labels 1..C.
        correct: (D,) bool.
        ious: (D,) with the object that a correct one finds.
        classes: C.
        bins: number of ranges.
    """
    if ((scores < 0) | (scores > 1)).any():
        return None
    at = np.minimum((scores * bins).astype(np.int64), bins - 1)
    cell = (labels - 1) * bins + at

    def sums(values: np.ndarray) -> np.ndarray:  # (C, B)
        return np.bincount(cell, values, minlength=classes * bins).reshape(classes, bins)

    counts, hits = sums(np.ones(len(scores))), sums(correct.astype(np.float64))
    score_sums, iou_sums = sums(scores), sums(np.where(correct, ious, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        of_class = np.abs(score_sums - hits).sum(1) / counts.sum(1)
        # Precision times the mean IoU of the correct ones is the mean of their IoUs over all.
        localised = np.abs(score_sums - iou_sums).sum(1) / counts.sum(1)
        total, total_hits, total_scores = counts.sum(0), hits.sum(0), score_sums.sum(0)
        ece = float(np.abs(total_scores - total_hits).sum() / total.sum())
        seen = counts.sum(1) > 0
        return Calibration(
            np.linspace(0.0, 1.0, bins + 1),
            total.astype(np.int64),
            total_scores / total,
            total_hits / total,
            ece,
            of_class,
            float(localised[seen].mean()) if seen.any() else float("nan"),
        )
