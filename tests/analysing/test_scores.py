# SPDX-License-Identifier: BSD-3-Clause
"""The best score threshold, calibration and the bootstrap."""

import math

import numpy as np
import pytest

from fastdet.analysing.bootstrap import difference, resampled_ap, resamplings
from fastdet.analysing.detections import Found
from fastdet.analysing.errors import average_precisions
from fastdet.analysing.matching import match, overlapping
from fastdet.analysing.scores import best_f1, calibration_of
from fastdet.data.annotations import Annotations
from tests.analysing.problems import found_of, in_hotcoco, problem


def test_the_best_threshold_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores, correct = rng.random(25).round(1), rng.random(25) < 0.4
        best = best_f1(scores, correct, 15)
        f1 = {t: 2 * correct[scores >= t].sum() / ((scores >= t).sum() + 15) for t in set(scores)}
        assert best.f1 == pytest.approx(max(f1.values()))
        assert best.threshold == max(t for t, value in f1.items() if value == max(f1.values()))
        shown = scores >= best.threshold
        assert best.precision == pytest.approx(correct[shown].mean())
        assert best.recall == pytest.approx(correct[shown].sum() / 15)
    assert all(map(math.isnan, best_f1(np.ones(2), np.zeros(2, bool), 0)))
    assert best_f1(np.zeros(0), np.zeros(0, bool), 3).f1 == 0


def test_calibration_equals_hotcoco_and_the_definition() -> None:
    annotations, found = problem(1, ties=False)
    evaluation = in_hotcoco(annotations, found)
    evaluation.evaluate()
    theirs = evaluation.calibration(n_bins=7)

    matches = match(annotations, found, overlapping(annotations, found, 0.1, masks=False), 0.5)
    counted = ~matches.ignored
    scores, labels = found.scores[counted], found.labels[counted]
    correct, ious = (matches.objects >= 0)[counted], matches.ious[counted]
    ours = calibration_of(scores, labels, correct, ious, 3, 7)
    assert ours is not None
    assert ours.ece == pytest.approx(theirs["ece"])
    assert ours.counts.tolist() == [one["count"] for one in theirs["bins"]]
    for label, name in enumerate(annotations.names, 1):
        assert ours.by_class[label - 1] == pytest.approx(theirs["per_category"][name])

    of_classes = []
    for label in (1, 2, 3):
        total = 0.0
        for low in range(7):
            own = (labels == label) & (np.floor(scores * 7) == low)
            if own.any():
                hits = own & correct
                placed = ious[hits].mean() if hits.any() else 0.0
                precision = hits.sum() / own.sum()
                gap = abs(scores[own].mean() - precision * placed)
                total += own.sum() / (labels == label).sum() * gap
        of_classes.append(total)
    assert ours.laece == pytest.approx(np.mean(of_classes))
    assert calibration_of(scores + 1, labels, correct, ious, 3, 7) is None
    top = calibration_of(np.array([0.0, 1.0]), np.array([1, 1]), correct[:2], ious[:2], 3, 4)
    assert top is not None
    assert top.counts.tolist() == [1, 0, 0, 1]


def drawn(annotations: Annotations, found: Found, weights: np.ndarray) -> float:
    """The AP of a data set that has each image as often as it is drawn."""
    matches = match(annotations, found, overlapping(annotations, found, 0.1, masks=False), 0.5)
    rows = np.repeat(np.arange(len(found)), weights[found.image_index])
    rows = rows[~matches.ignored[rows]]
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    times = weights[annotations.image_index] * ~annotations.crowd
    counts = np.bincount(annotations.labels, times, minlength=4)[1:].astype(int)
    aps = average_precisions(found.labels[rows], matches.objects[rows] >= 0, counts)
    return float(np.nanmean(aps)) if counts.any() else math.nan


def test_resampled_ap_is_that_of_the_drawn_pictures() -> None:
    for seed in range(8):
        annotations, found = problem(seed)
        matches = match(annotations, found, overlapping(annotations, found, 0.1, masks=False), 0.5)
        weights = resamplings(4, 12, seed)
        assert (weights.sum(1) == 4).all()
        expected = [drawn(annotations, found, one) for one in weights]
        np.testing.assert_allclose(
            resampled_ap(annotations, found, matches, weights), expected, atol=1e-12
        )


def test_without_resamplings_there_is_no_range() -> None:
    annotations, found = problem(0)
    matches = match(annotations, found, overlapping(annotations, found, 0.1, masks=False), 0.5)
    assert (matches.objects >= 0).any()
    assert resampled_ap(annotations, found, matches, resamplings(4, 0)).shape == (0,)


def test_the_range_of_a_difference() -> None:
    of = difference(0.2, np.append(np.linspace(0.1, 0.3, 1001), math.nan))
    assert (of.low, of.high) == pytest.approx((0.105, 0.295))
    assert of.is_clear
    assert not difference(0.0, np.linspace(-0.1, 0.3, 100)).is_clear
    none = difference(0.2, np.zeros(0))
    assert math.isnan(none.low)
    assert not none.is_clear


def test_only_the_best_of_an_image_count() -> None:
    annotations, _ = problem(0)
    rows = [(0, 1, 0, 0, 9, 9, s) for s in (0.5, 0.9, 0.5, 0.1)] + [(1, 1, 0, 0, 9, 9, 0.2)]
    found = found_of([*rows, (0, 2, 0, 0, 9, 9, 0.3)], annotations)
    assert sorted(found.best(2).scores.tolist()) == [0.2, 0.3, 0.5, 0.9]
    assert found.best(4) is found
