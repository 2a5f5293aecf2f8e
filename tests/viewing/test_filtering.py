# SPDX-License-Identifier: BSD-3-Clause
"""Which pictures, objects and detections a filter leaves, worked out the slow way beside it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdet.analysing import AnalysisOptions, analyse_side, read_found
from fastdet.analysing.errors import CORRECT, IGNORED, KINDS, MISSED, find_errors
from fastdet.analysing.matching import match, overlapping
from fastdet.data.opening import read_split
from fastdet.viewing.collection import KIND_NUMBERS, UNKNOWN, Collection, open_collection
from fastdet.viewing.filtering import EVERY, Filter, select
from tests.data_sets import SAMPLE
from tests.viewing.made_up import make_up


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("results")
    files = [
        make_up(SAMPLE / "val.json", folder / f"{name}.json", i) for i, name in enumerate("ab")
    ]
    return open_collection(SAMPLE, "val", files)


def everything(collection: Collection) -> Filter:
    return Filter(scores=(EVERY,) * len(collection.sides))


@pytest.mark.parametrize("score", [0.0, 0.45, 0.6, 0.8, 2.0])
def test_kinds_of_objects_are_those_of_the_detections_from_a_score_on(
    sample: Collection, score: float
) -> None:
    annotations = sample.annotations
    for side in sample.sides:
        found = side.found.rows(np.flatnonzero(side.found.scores >= score))
        pairs = overlapping(annotations, found, 0.1, masks=False)
        matches = match(annotations, found, pairs, 0.5)
        expected = find_errors(annotations, found, pairs, matches, 0.5, 0.1)
        assert np.array_equal(side.object_kinds(annotations, score), expected.object_kinds)
        kept = side.errors.kinds[side.found.scores >= score]
        assert np.array_equal(kept, expected.kinds)


def test_kinds_and_the_first_score_are_those_of_the_analysis(sample: Collection) -> None:
    for side in sample.sides:
        path = side.found.path
        found, _ = read_found(path, sample.annotations, masks=False)
        analysed = analyse_side(sample.annotations, found, AnalysisOptions(resamplings=0))
        assert np.array_equal(side.errors.kinds, analysed.errors.kinds)
        assert side.best_score == analysed.score_threshold
        kinds = side.object_kinds(sample.annotations, side.best_score)
        assert np.array_equal(kinds, analysed.objects.kinds)


def test_all_is_shown_and_counted_where_nothing_is_asked_for(sample: Collection) -> None:
    chosen = select(sample, everything(sample))
    annotations, side = sample.annotations, sample.sides[0]
    assert chosen.images.tolist() == list(range(len(annotations.image_ids)))
    assert chosen.objects.all()
    assert chosen.detections.all()
    assert sum(found for found, _ in chosen.counts.values()) == len(side.found)
    assert sum(objects for _, objects in chosen.counts.values()) == len(annotations.labels)
    assert chosen.counts["ignored"][1] == annotations.crowd.sum()
    for kind in ("correct", "classification", "localisation", "duplicate", "background"):
        assert chosen.counts[kind][0] > 0, kind
    assert chosen.counts["missed"] == (0, int((side.errors.object_kinds == MISSED).sum()))


def slowly(collection: Collection, asked: Filter) -> tuple[list[int], set[int], set[int]]:
    """Pictures, objects and detections, one after the other."""
    annotations, side = collection.annotations, collection.sides[asked.side]
    low, high = asked.scores[asked.side]
    kinds = [
        s.object_kinds(annotations, asked.scores[i][0]) for i, s in enumerate(collection.sides)
    ]
    images = [
        index
        for index, name in enumerate(annotations.file_names)
        if asked.name.lower() in name.lower()
        and asked.objects[0]
        <= sum((annotations.image_index == index) & ~annotations.crowd)
        <= asked.objects[1]
        and asked.size[0] <= max(annotations.image_sizes[index]) <= asked.size[1]
    ]
    numbers = [KIND_NUMBERS[kind] for kind in asked.kinds]

    def of_classes(label: int) -> bool:
        return not asked.classes or label in asked.classes

    def found_as_asked(row: int) -> bool:
        own = kinds[asked.side][row] == CORRECT
        others = any(k[row] == CORRECT for i, k in enumerate(kinds) if i != asked.side)
        return (
            not annotations.crowd[row]
            and {
                "only": own and not others,
                "others only": others and not own,
                "all": own and others,
                "none": not own and not others,
            }[asked.found_by]
        )

    objects = {
        row
        for row, index in enumerate(annotations.image_index.tolist())
        if index in images
        and of_classes(annotations.labels[row])
        and (asked.found_by == "any" or found_as_asked(row))
    }
    detections = set()
    for row, index in enumerate(side.found.image_index.tolist()):
        about = int(side.errors.about[row])
        if index not in images or not low <= side.found.scores[row] <= high:
            continue
        if asked.found_by != "any":
            if about in objects:
                detections.add(row)
        elif of_classes(int(side.found.labels[row])) or (
            about >= 0 and of_classes(int(annotations.labels[about]))
        ):
            detections.add(row)
    if numbers:
        objects = {row for row in objects if kinds[asked.side][row] in numbers}
        detections = {row for row in detections if side.errors.kinds[row] in numbers}
    if asked.classes or asked.kinds or asked.found_by != "any":
        having = {int(annotations.image_index[row]) for row in objects}
        having |= {int(side.found.image_index[row]) for row in detections}
        images = [index for index in images if index in having]
    return images, objects, detections


@pytest.mark.parametrize(
    "asked",
    [
        Filter(classes=frozenset({1})),
        Filter(classes=frozenset({2, 3})),
        Filter(kinds=frozenset({"missed"})),
        Filter(kinds=frozenset({"duplicate", "background"}), side=1),
        Filter(kinds=frozenset({"classification"}), classes=frozenset({2})),
        Filter(kinds=frozenset({"ignored"})),
        Filter(scores=((0.5, 0.8), (0.7, 1.0)), kinds=frozenset({"correct", "missed"})),
        Filter(found_by="only"),
        Filter(found_by="others only", scores=((0.6, 1.0), (0.5, 1.0))),
        Filter(found_by="all", side=1),
        Filter(found_by="none", classes=frozenset({1, 2})),
        Filter(name="11", objects=(8, 9)),
        Filter(size=(300, 320), name=".JPG"),
        Filter(name="no such name"),
    ],
)
def test_a_filter_leaves_what_is_asked_for(sample: Collection, asked: Filter) -> None:
    asked = replace(asked, scores=asked.scores or (EVERY, EVERY))
    chosen = select(sample, asked)
    images, objects, detections = slowly(sample, asked)
    assert chosen.images.tolist() == images
    assert {*np.flatnonzero(chosen.objects)} == objects
    assert {*np.flatnonzero(chosen.detections)} == detections
    about = sample.sides[asked.side].errors.about[sorted(detections)] if detections else []
    assert {*np.flatnonzero(chosen.context)} == objects | {row for row in about if row >= 0}


def test_counts_by_kind_do_not_depend_on_the_kinds_asked_for(sample: Collection) -> None:
    asked = replace(everything(sample), classes=frozenset({1}))
    counts = select(sample, asked).counts
    assert select(sample, replace(asked, kinds=frozenset({"missed"}))).counts == counts
    assert counts != select(sample, everything(sample)).counts


def test_orders_of_the_pictures(sample: Collection) -> None:
    annotations = sample.annotations
    orders = {
        order: select(sample, replace(everything(sample), order=order)).images.tolist()
        for order in ("file", "name", "most objects", "most errors", "largest", "smallest")
    }
    for order in orders.values():
        assert sorted(order) == orders["file"]
    names = [annotations.file_names[index] for index in orders["name"]]
    assert names == sorted(names)
    areas = [annotations.image_sizes[index].prod() for index in orders["largest"]]
    assert areas == sorted(areas, reverse=True)
    assert [annotations.image_sizes[i].prod() for i in orders["smallest"]] == areas[::-1]
    side = sample.sides[0]
    kinds = side.object_kinds(annotations, -np.inf)
    errors = [
        ((annotations.image_index == i) & (kinds > CORRECT)).sum()
        + ((side.found.image_index == i) & (side.errors.kinds > CORRECT)).sum()
        for i in orders["most errors"]
    ]
    assert errors == sorted(errors, reverse=True)
    objects = [(annotations.image_index == i).sum() for i in orders["most objects"]]
    assert objects == sorted(objects, reverse=True)


def test_without_detections_there_are_no_kinds() -> None:
    collection = open_collection(SAMPLE, "val")
    chosen = select(collection, Filter(classes=frozenset({1}), order="most errors"))
    assert chosen.counts == {}
    assert len(chosen.object_kinds) == len(chosen.detections) == 0
    labels = collection.annotations.labels
    assert chosen.objects.sum() == (labels == 1).sum()


def test_objects_of_pictures_that_the_detector_has_not_seen_are_not_missed(tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    results = make_up(SAMPLE / "val.json", tmp_path / "detections.json", 0)
    seen = {image["id"] for image in content["images"][:5]}
    rows = [row for row in json.loads(results.read_text()) if row["image_id"] in seen]
    results.write_text(json.dumps(rows))
    images = [image for image in content["images"] if image["id"] in seen]
    (tmp_path / "images.json").write_text(
        json.dumps({"images": images, "categories": content["categories"]})
    )
    collection = open_collection(SAMPLE, "val", [results])
    (side,) = collection.sides
    kinds = side.object_kinds(collection.annotations, 0.0)
    inside = collection.annotations.image_index < 5
    assert (kinds[~inside] == UNKNOWN).all()
    assert (kinds[inside] != UNKNOWN).all()
    chosen = select(collection, replace(everything(collection), kinds=frozenset({"missed"})))
    assert set(chosen.images.tolist()) <= set(range(5))


def test_objects_of_classes_that_the_detector_does_not_know_are_not_judged(tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    results = make_up(SAMPLE / "val.json", tmp_path / "detections.json", 0)
    gone = content["categories"].pop(0)
    rows = [row for row in json.loads(results.read_text()) if row["category_id"] != gone["id"]]
    results.write_text(json.dumps(rows))
    (tmp_path / "images.json").write_text(
        json.dumps({"images": content["images"], "categories": content["categories"]})
    )
    with pytest.warns(UserWarning, match=f"no detections of {gone['name']}: such objects are not"):
        collection = open_collection(SAMPLE, "val", [results])
    (side,) = collection.sides
    annotations = collection.annotations
    unknown = annotations.labels == annotations.names.index(gone["name"]) + 1
    for score in (0.0, 0.6):
        kinds = side.object_kinds(annotations, score)
        assert ((kinds == UNKNOWN) == unknown).all()
    # All else is as in an analysis that leaves these classes out.
    found, here = read_found(results, annotations, False, drop_other_classes=True)
    assert here.known.sum() == len(annotations.names) - 1
    kept = annotations.kept(np.ones(len(annotations.image_ids), bool), ~unknown)
    analysed = analyse_side(kept, found, AnalysisOptions(resamplings=0))
    assert np.array_equal(side.errors.kinds, analysed.errors.kinds)
    assert side.best_score == analysed.score_threshold
    kinds = side.object_kinds(annotations, side.best_score)
    assert np.array_equal(kinds[~unknown], analysed.objects.kinds)
    about = side.errors.about >= 0
    assert np.array_equal(about, analysed.errors.about >= 0)
    assert not unknown[side.errors.about[about]].any()


def test_every_kind_has_its_name() -> None:
    assert list(KIND_NUMBERS) == ["correct", *KINDS, "ignored"]
    assert [*KIND_NUMBERS.values()] == [CORRECT, *range(len(KINDS)), IGNORED]


def test_masks_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    lacking = content["annotations"][3].pop("segmentation")
    assert lacking
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(SAMPLE / "images")
    (data / "val.json").write_text(json.dumps(content))
    results = make_up(SAMPLE / "val.json", tmp_path / "a.json", 0)
    rows = json.loads(results.read_text())
    masked = [{**row, "segmentation": lacking} for row in rows if row["image_id"] == 119][:2]
    (tmp_path / "b.json").write_text(json.dumps(masked))
    collection = open_collection(data, "val", [results, tmp_path / "b.json"])
    full = read_split(SAMPLE, "val", masks=True)
    masks = collection.object_masks()
    ids = collection.annotations.annotation_ids
    assert len(collection.annotations.labels) == len(full.labels)
    assert full.masks is not None
    of_id = dict(zip(full.annotation_ids.tolist(), full.masks, strict=True))
    assert {int(ids[row]) for row in masks} == {*of_id} - {content["annotations"][3]["id"]}
    assert all(of_id[int(ids[row])] == mask for row, mask in masks.items())
    assert collection.detection_masks(0) is None
    of_b = collection.detection_masks(1)
    assert of_b is not None
    assert len(of_b) == len(masked)
