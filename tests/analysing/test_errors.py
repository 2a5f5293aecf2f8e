# SPDX-License-Identifier: BSD-3-Clause
"""The kinds of errors and what they cost: by definition, and as hotcoco where there is no crowd."""

import numpy as np
import pytest

from fastdet.analysing.detections import Found
from fastdet.analysing.errors import (
    CORRECT,
    IGNORED,
    KINDS,
    MISSED,
    Cost,
    Errors,
    cost_of,
    find_errors,
    objects_from,
)
from fastdet.analysing.matching import match, overlapping
from fastdet.data.annotations import Annotations
from tests.analysing.problems import annotations_of, found_of, in_hotcoco, problem
from tests.analysing.reference import cost, kinds_of

SHORT = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # of hotcoco and tidecv


def analysed(annotations: Annotations, found: Found) -> tuple[Errors, Cost]:
    pairs = overlapping(annotations, found, 0.1, masks=False)
    matches = match(annotations, found, pairs, 0.5)
    errors = find_errors(annotations, found, pairs, matches, 0.5, 0.1)
    return errors, cost_of(annotations, found, errors)


def hotcoco_errors(annotations: Annotations, found: Found) -> dict:
    order = np.argsort(annotations.image_ids)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    evaluation = in_hotcoco(annotations, found, number)
    evaluation.evaluate()
    return evaluation.tide_errors()


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
def test_kinds_and_costs_equal_the_definition(ties: bool) -> None:
    for seed in range(15):
        annotations, found = problem(seed, ties=ties)
        errors, costs = analysed(annotations, found)
        kinds, missed = kinds_of(annotations, found, 0.5, 0.1)
        wrong = np.flatnonzero(errors.kinds > CORRECT).tolist()
        assert {r: KINDS[errors.kinds[r]] for r in wrong} == {r: k for r, (k, _) in kinds.items()}
        assert [errors.about[r] for r in wrong] == [kinds[r][1] for r in wrong]
        assert set(np.flatnonzero(errors.object_kinds == MISSED).tolist()) == missed
        base = cost(annotations, found, None)
        np.testing.assert_allclose(costs.base, base, atol=1e-12)
        for k, kind in enumerate(KINDS):
            gain = cost(annotations, found, kind) - base
            np.testing.assert_allclose(costs.by_class[:, k], np.maximum(gain, 0), atol=1e-12)
            np.testing.assert_allclose(costs.total[k], max(0, np.nanmean(gain)), atol=1e-12)


def test_costs_equal_hotcoco_without_crowds() -> None:
    compared = 0
    for seed in range(60):
        annotations, found = problem(seed, crowds=False)
        errors, costs = analysed(annotations, found)
        theirs = hotcoco_errors(annotations, found)
        counts = [*np.bincount(errors.kinds[errors.kinds >= 0], minlength=5)]
        counts.append((errors.object_kinds == MISSED).sum())
        assert counts == [theirs["counts"][name] for name in SHORT]
        labels = annotations.labels
        missed = errors.object_kinds == MISSED
        if any(missed[labels == label].all() for label in set(labels.tolist())):
            continue  # see `errors`: that costs 1 here
        ours = dict(zip(SHORT, costs.total, strict=True))
        for name in SHORT:
            assert ours[name] == pytest.approx(theirs["delta_ap"][name], abs=1e-9), (seed, name)
        assert costs.mean == pytest.approx(theirs["ap_base"], abs=1e-9)
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
def test_objects_from_a_score_on_are_those_of_these_detections_alone(ties: bool) -> None:
    below_and_wrong = 0
    for seed in range(15):
        annotations, found = problem(seed, ties=ties)
        errors, _ = analysed(annotations, found)
        pairs = overlapping(annotations, found, 0.1, masks=False)
        matches = match(annotations, found, pairs, 0.5)
        for score in (0.0, 0.3, 0.7, 2.0):
            rows = np.flatnonzero(found.scores >= score)
            alone, _ = analysed(annotations, found.rows(rows))
            objects = objects_from(annotations, found, matches, errors.kinds, errors.about, score)
            assert np.array_equal(objects.kinds, alone.object_kinds)
            assert np.array_equal(errors.kinds[rows], alone.kinds)
            fixing = np.append(rows, -1)[alone.fixing]
            assert np.array_equal(objects.by[objects.kinds >= 0], fixing[objects.kinds >= 0])
            below_and_wrong += ((errors.object_kinds == CORRECT) & (fixing >= 0)).sum()
    assert below_and_wrong > 10


def test_a_crowd_is_no_object() -> None:
    # A crowd, and an object elsewhere that is found. What overlaps the crowd a little is
    # background, what lies in it is ignored, another class in it is background.
    annotations = annotations_of(
        [(0, 1, 0, 0, 50, 50, 1), (0, 1, 60, 60, 20, 20, 0)], 1, ["a", "b"]
    )
    rows = [
        (0, 1, 30, 30, 40, 40, 0.9),
        (0, 1, 5, 5, 20, 20, 0.8),
        (0, 2, 5, 5, 20, 20, 0.7),
        (0, 1, 60, 60, 20, 20, 0.6),
    ]
    errors, costs = analysed(annotations, found_of(rows, annotations))
    words = {CORRECT: "correct", IGNORED: "ignored"} | dict(enumerate(KINDS))
    kinds = [words[kind] for kind in errors.kinds.tolist()]
    # The first also overlaps the object a little: 10 x 10 of 40 x 40 and 20 x 20.
    assert kinds == ["background", "ignored", "background", "correct"]
    assert costs.base[0] == pytest.approx(0.5)
    assert costs.by_class[0].round(6).tolist() == [0, 0, 0, 0, 0.5, 0]
    assert hotcoco_errors(annotations, found_of(rows, annotations))["counts"]["Loc"] == 1


def test_a_class_without_objects_and_one_that_is_missed() -> None:
    annotations = annotations_of(
        [(0, 1, 0, 0, 20, 20, 0), (0, 3, 50, 50, 20, 20, 0)], 1, ["a", "absent", "missed"]
    )
    rows = [(0, 1, 0, 0, 20, 20, 0.5), (0, 2, 0, 60, 20, 20, 0.9)]
    errors, costs = analysed(annotations, found_of(rows, annotations))
    assert np.isnan(costs.base).tolist() == [False, True, False]
    assert np.isnan(costs.by_class[1]).all()
    assert costs.by_class[2].tolist() == [0, 0, 0, 0, 0, 1]
    assert costs.total[5] == 0.5
    assert errors.object_kinds.tolist() == [CORRECT, MISSED]
    nothing = annotations_of([], 1, ["a"])
    _, costs = analysed(nothing, found_of([(0, 1, 0, 0, 9, 9, 0.5)], nothing))
    assert np.isnan(costs.total).all()
    assert np.isnan(costs.mean)
