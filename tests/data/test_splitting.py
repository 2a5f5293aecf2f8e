# SPDX-License-Identifier: BSD-3-Clause
"""Dividing images into splits: counts, classes, and independence of the order."""

from pathlib import Path

import numpy as np
import pytest

from fastdet.data import Annotations
from fastdet.data.splitting import split_annotations

THREE = {"train": 0.8, "val": 0.1, "test": 0.1}


def annotations(labels: list[list[int]], names: list[str] | None = None) -> Annotations:
    """One image for each list of labels."""
    index = np.array([i for i, some in enumerate(labels) for _ in some], np.int64)
    count = len(index)
    return Annotations(
        path=Path("whole.json"),
        images=Path("images"),
        image_ids=[100 + i for i in range(len(labels))],
        file_names=names or [f"{i}.png" for i in range(len(labels))],
        image_sizes=np.full((len(labels), 2), 64),
        category_ids=list(range(10)),
        names=[str(i) for i in range(10)],
        annotation_ids=np.arange(count),
        image_index=index,
        labels=np.array([label for some in labels for label in some], np.int64),
        boxes_xywh=np.arange(4.0 * count).reshape(-1, 4),
        areas=np.arange(1.0 * count),
        crowd=np.zeros(count, bool),
        masks=None,
    )


@pytest.mark.parametrize(
    ("images", "counts"), [(3, [1, 1, 1]), (10, [8, 1, 1]), (25, [21, 2, 2]), (100, [80, 10, 10])]
)
def test_every_image_is_in_one_split(images: int, counts: list[int]) -> None:
    parts = split_annotations(annotations([[1]] * images), THREE)
    assert list(parts) == ["train", "val", "test"]
    assert [len(part.image_ids) for part in parts.values()] == counts
    ids = [i for part in parts.values() for i in part.image_ids]
    assert sorted(ids) == [100 + i for i in range(images)]


def test_an_image_keeps_what_it_has() -> None:
    whole = annotations([[1, 2], [], [3], [2, 2, 1], [1], [4]])
    for part in split_annotations(whole, {"train": 0.5, "val": 0.5}).values():
        assert part.names == whole.names
        for i, image_id in enumerate(part.image_ids):
            before = whole.image_index == whole.image_ids.index(image_id)
            now = part.image_index == i
            for column in ("annotation_ids", "labels", "boxes_xywh", "areas", "crowd"):
                expected = getattr(whole, column)[before]
                np.testing.assert_array_equal(getattr(part, column)[now], expected)
        assert part.image_ids == sorted(part.image_ids)  # the order of the whole


def test_the_split_of_an_image_does_not_depend_on_the_order() -> None:
    labels = [[1 + i % 7, 1 + i % 3] for i in range(50)]
    names = [f"{i}.png" for i in range(50)]
    parts = split_annotations(annotations(labels, names), THREE)
    turned = split_annotations(annotations(labels[::-1], names[::-1]), THREE)
    other = split_annotations(annotations(labels, names), THREE, seed=1)
    for name in THREE:
        assert sorted(parts[name].file_names) == sorted(turned[name].file_names)
    assert sorted(other["val"].file_names) != sorted(parts["val"].file_names)
    # Of SHA-256, so the same on every machine.
    assert parts["test"].file_names == [f"{i}.png" for i in (24, 26, 32, 34, 48)]


def test_a_class_is_in_every_split_that_its_images_suffice_for() -> None:
    labels = [[1]] * 94 + [[1, 2], [1, 2], [1, 2], [3], [3], [4]]
    parts = split_annotations(annotations(labels), THREE)
    classes = {name: set(part.labels.tolist()) for name, part in parts.items()}
    assert classes["train"] == {1, 2, 3, 4}
    assert {2} <= classes["val"]
    assert {2} <= classes["test"]
    assert (3 in classes["val"]) + (3 in classes["test"]) == 1


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.8, "val": 0.1}, "expected numbers above 0 that sum to 1"),
        ({"train": 1.0, "val": 0.0}, "expected numbers above 0"),
        ({"train": 2.0, "val": -1.0}, "expected numbers above 0"),
        ({"train": float("nan"), "val": 1.0}, "expected numbers above 0"),
        ({}, "expected numbers above 0"),
        (THREE, r"whole\.json: expected an image or more for each of train, val, test, got 2"),
    ],
)
def test_bad_fractions(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_annotations(annotations([[1], [1]]), fractions)
