# SPDX-License-Identifier: BSD-3-Clause
"""The confusion matrix, by hand and as hotcoco's where that has the same rules."""

import numpy as np

from fastdet.analysing.confusion import confusion_of
from fastdet.analysing.detections import Found
from fastdet.analysing.matching import match, overlapping
from fastdet.data.annotations import Annotations
from tests.analysing.problems import annotations_of, found_of, in_hotcoco, problem


def matrix(annotations: Annotations, found: Found, score: float = 0.0) -> np.ndarray:
    pairs = overlapping(annotations, found, 0.1, masks=False)
    matches = match(annotations, found, pairs, 0.5)
    return confusion_of(annotations, found, pairs, matches, score, 0.5).matrix


def hotcoco_matrix(annotations: Annotations, found: Found, score: float) -> np.ndarray:
    evaluation = in_hotcoco(annotations, found)
    return evaluation.confusion_matrix(0.5, min_score=score)["matrix"].astype(np.int64)


def test_by_hand() -> None:
    annotations = annotations_of(
        [
            (0, 1, 0, 0, 20, 20, 0),  # found
            (0, 1, 40, 0, 20, 20, 0),  # as b
            (0, 2, 0, 40, 20, 20, 0),  # not found
            (1, 1, 0, 0, 50, 50, 1),  # a crowd
        ],
        2,
        ["a", "b"],
    )
    rows = [
        (0, 1, 0, 0, 20, 20, 0.9),
        (0, 2, 40, 0, 20, 20, 0.8),
        (0, 2, 70, 70, 20, 20, 0.7),  # nothing
        (0, 2, 0, 40, 20, 20, 0.1),  # below the threshold
        (1, 1, 5, 5, 20, 20, 0.9),  # in the crowd
        (1, 2, 5, 5, 20, 20, 0.9),  # of another class than the crowd
    ]
    found = found_of(rows, annotations)
    assert matrix(annotations, found, 0.3).tolist() == [[1, 1, 0], [0, 0, 1], [0, 2, 0]]
    assert matrix(annotations, found)[1].tolist() == [0, 1, 0]
    theirs = hotcoco_matrix(annotations, found, 0.3)
    assert theirs.tolist() == [[1, 1, 0], [0, 0, 1], [1, 2, 0]]  # it counts the one in the crowd


def test_a_found_object_is_not_confused() -> None:
    # The detection lies better on the object of the other class, but finds its own.
    annotations = annotations_of([(0, 1, 0, 0, 50, 50, 0), (0, 2, 4, 0, 50, 50, 0)], 1, ["a", "b"])
    found = found_of([(0, 2, 0, 0, 50, 50, 0.9)], annotations)
    assert matrix(annotations, found).tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert hotcoco_matrix(annotations, found, 0.0)[0, 1] == 1


def test_objects_and_detections_are_each_counted_once() -> None:
    for seed in range(20):
        annotations, found = problem(seed)
        counts = matrix(annotations, found, 0.4)
        objects = annotations.labels[~annotations.crowd]
        assert counts[:-1].sum(1).tolist() == [(objects == label).sum() for label in (1, 2, 3)]
        pairs = overlapping(annotations, found, 0.1, masks=False)
        matches = match(annotations, found, pairs, 0.5)
        shown = found.labels[(found.scores >= 0.4) & ~matches.ignored]
        assert counts[:, :-1].sum(0).tolist() == [(shown == label).sum() for label in (1, 2, 3)]
        correct = found.labels[(matches.objects >= 0) & (found.scores >= 0.4)]
        assert np.diag(counts)[:-1].tolist() == [(correct == label).sum() for label in (1, 2, 3)]


def test_it_equals_hotcoco_where_objects_lie_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        places = [(x, y) for x in range(0, 100, 25) for y in range(0, 100, 25)]
        objects = [(0, rng.integers(1, 4), x, y, 20, 20, 0) for x, y in places]
        annotations = annotations_of(objects, 1, ["a", "b", "c"])
        rows = [
            (0, rng.integers(1, 4), x + rng.integers(-8, 8), y, 20, 20, rng.random())
            for x, y in places
        ]
        found = found_of(rows, annotations)
        ours, theirs = matrix(annotations, found, 0.3), hotcoco_matrix(annotations, found, 0.3)
        assert (ours == theirs).all()
    nothing = annotations_of([], 1, ["a"])
    found = found_of([(0, 1, 0, 0, 9, 9, 0.5)], nothing)
    assert matrix(nothing, found).tolist() == [[0, 0], [1, 0]]
