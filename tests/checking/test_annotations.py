# SPDX-License-Identifier: BSD-3-Clause
"""Each kind of finding in annotations is planted into a clean data set and found with its ids."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdet.checking import reading
from fastdet.checking.boxes import near_pairs
from fastdet.checking.check import check_dataset
from fastdet.checking.findings import KINDS
from fastdet.data.annotations import AnnotationNotes, Annotations, AnnotationWarning
from fastdet.data.formats import find_splits
from fastdet.data.formats.split import Split
from tests.checking.planted import NO_MODEL, DataSet, annotation, ids
from tests.data_sets import data_sets


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path / "data")


def test_a_clean_data_set_has_no_finding(data: DataSet) -> None:
    report = data.check()
    assert report.findings == []
    train, val = report.summaries
    assert (train.pictures, train.objects, train.categories) == (4, 8, {"cat": 4, "dog": 4})
    assert (val.split, val.format, val.objects_per_picture) == ("val", "coco", (2, 2.0, 2))
    assert (train.small, train.medium, train.large) == (0, 8, 0)
    assert train.picture_sizes == {"160 x 120": 4}
    assert len(report.files) == report.pictures == 6


BOXES = {
    "box-outside": [[160, 10, 20, 20], [10, -30, 20, 30]],
    "box-partly-outside": [[150, 100, 30, 30], [-20, 10, 30, 9]],
    "box-flipped": [[90, 10, -20, 20], [90, 40, 20, -20]],
    "box-empty": [[90, 10, 0, 20], [90, 10, 20, 0]],
    "box-below-1-pixel": [[90, 10, 0.5, 20], [90, 10, 20, 0.9]],
    "box-below-2-pixels": [[90, 10, 1.5, 20], [90, 10, 20, 1]],
    "box-of-whole-picture": [[0, 0, 160, 120], [1, 1, 158.5, 118.5]],
    "box-not-finite": [[float("nan"), 10, 20, 20], [1, 10, float("inf"), 20]],
    "box-unreadable": [[10, 10, 20], ["10", 10, 20, 20]],
}


@pytest.mark.filterwarnings("error")
def test_a_box_of_absurd_size_is_a_finding_and_no_warning_of_numpy(data: DataSet) -> None:
    data.plant(annotation(901, 2, [1, 2, 1e308, 1e308], area=None))
    assert set(data.found()) == {"box-partly-outside"}


@pytest.mark.parametrize("name", BOXES)
def test_boxes(data: DataSet, name: str) -> None:
    data.plant(
        annotation(901, 2, BOXES[name][0], area=None), annotation(902, 3, BOXES[name][1], area=None)
    )
    found = data.found()
    assert set(found) == {name}
    assert ids(found[name]) == [(2, 901), (3, 902)]
    assert found[name].count == 2
    assert found[name].split == "train"


def test_what_the_reader_leaves_out_is_found_with_all_ids_and_not_printed(
    data: DataSet, recwarn: pytest.WarningsRecorder
) -> None:
    data.plant(
        annotation(901, 77, [1, 2, 30, 40]),
        annotation(902, 78, [1, 2, 30, 40]),
        annotation(903, 1, [1, 2, 30, 40], category_id=9),
        annotation(904, 2, [5, 5, 30, 40], iscrowd=7),
        annotation(905, 2, [5, 9, 30, 40], area=float("nan")),
    )
    found = data.found()
    assert not recwarn.list
    assert ids(found["unknown-image"]) == [(77, 901), (78, 902)]
    assert ids(found["unknown-category"]) == [(1, 903)]
    assert ids(found["annotation-left-out"]) == [(2, 904)]
    assert "iscrowd is neither 0 nor 1" in found["annotation-left-out"].detail
    assert ids(found["annotation-changed"]) == [(2, 905)]
    assert len(found) == 4


def test_notes_keep_every_place() -> None:
    notes = AnnotationNotes(Path("a.json"))
    notes.add("skipped: x", "line 3")
    notes.add("skipped: x", "line 9", count=4)
    with pytest.warns(AnnotationWarning) as caught:
        notes.warn()
    warning: Any = caught[0].message
    assert str(warning) == "a.json: 5 annotations skipped: x (first: line 3)"
    assert (warning.count, [str(place) for place in warning.places]) == (5, ["line 3", "line 9"])


def test_repeated_boxes(data: DataSet) -> None:
    data.plant(
        annotation(901, 1, [1, 2, 100, 100]),
        annotation(902, 1, [1, 2, 100, 100]),
        annotation(903, 1, [1, 2, 100, 100], category_id=2),
        annotation(904, 1, [1, 2, 101, 101]),
        annotation(905, 2, [1, 2, 100, 100]),  # in another image
        annotation(906, 1, [1, 2, 100, 100], iscrowd=1),  # no object
        annotation(907, 1, [1, 2, 110, 110]),  # IoU 0.83
    )
    found = data.found()
    assert set(found) == {"box-repeated", "box-of-two-categories", "box-nearly-repeated"}
    assert ids(found["box-repeated"]) == [(1, 902)]
    assert found["box-repeated"].places[0].detail == "as annotation id 901"
    assert ids(found["box-of-two-categories"]) == [(1, 903)]
    assert found["box-of-two-categories"].places[0].detail == "dog; annotation id 901 is cat"
    assert ids(found["box-nearly-repeated"]) == [(1, 904)]
    assert found["box-nearly-repeated"].places[0].detail == "IoU 0.980 with annotation id 901"


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_near_pairs_are_those_of_all_pairs(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 4, (number, 2)) * rng.choice([0.5, 3])
    corners = np.concatenate([low, low + rng.integers(20, 40, (number, 2))], axis=1)
    groups = rng.integers(0, 3, number)
    first, second, iou = near_pairs(groups, corners, 0.8)
    expected = {}
    for i in range(number):
        for j in range(i + 1, number):
            sides = np.minimum(corners[i, 2:], corners[j, 2:]) - np.maximum(
                corners[i, :2], corners[j, :2]
            )
            common = sides.clip(0).prod()
            areas = [(corners[k, 2:] - corners[k, :2]).prod() for k in (i, j)]
            value = common / (sum(areas) - common)
            if groups[i] == groups[j] and value > 0.8:
                expected[i, j] = value
    found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), iou, strict=True))
    assert found == pytest.approx(expected)


def many(data: DataSet, boxes: np.ndarray) -> list[tuple[int, int]]:
    """Replaces the annotations of train by boxes, in turn on its images."""
    data.train["annotations"] = [
        annotation(100 + i, 1 + i % 4, box, category_id=1 + i % 2, area=None)
        for i, box in enumerate(boxes.tolist())
    ]
    return [(1 + i % 4, 100 + i) for i in range(len(boxes))]


def some_boxes(number: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform([2, 2, 8, 8], [90, 60, 55, 55], (number, 4))


def test_fractions_in_place_of_pixels(data: DataSet) -> None:
    places = many(data, some_boxes() / [160, 120, 160, 120])
    found = data.found()
    assert set(found) == {"boxes-normalised"}
    assert ids(found["boxes-normalised"]) == places


def test_corners_in_place_of_sizes(data: DataSet) -> None:
    boxes = some_boxes()
    places = many(data, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    found = data.found()
    suspected = set(ids(found["boxes-as-corners"]))
    assert suspected <= set(places)
    assert len(suspected) > 8
    assert suspected == set(ids(found["box-partly-outside"]))


def test_pixels_that_count_from_1(data: DataSet) -> None:
    boxes = some_boxes()
    boxes[:6, 0], boxes[6:9, 0] = 1, 160 - boxes[6:9, 2]
    places = many(data, boxes)
    found = data.found()
    assert set(found) == {"boxes-from-1"}
    assert ids(found["boxes-from-1"]) == places[:6]
    assert found["boxes-from-1"].detail == "6 boxes begin at x = 1, 0 at y = 1, none before"
    boxes[20, 0] = 0  # one that does not agree
    many(data, boxes)
    assert data.found() == {}


def test_boxes_one_pixel_beyond_the_picture(data: DataSet) -> None:
    boxes = some_boxes()
    boxes[:7, 1] = 121 - boxes[:7, 3]
    places = many(data, boxes)
    found = data.found()
    assert ids(found["boxes-from-1"]) == places[:7]
    assert "7 end 1 pixel beyond the picture" in found["boxes-from-1"].detail


def test_ends_that_are_meant_inclusively(data: DataSet) -> None:
    boxes = some_boxes()
    boxes[:6, 1] = 119 - boxes[:6, 3]
    boxes[8, 1] = 0
    places = many(data, boxes)
    found = data.found()
    assert set(found) == {"boxes-end-inclusive"}
    assert ids(found["boxes-end-inclusive"]) == places[:6]


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def test_segmentations(data: DataSet) -> None:
    for record in data.train["annotations"]:
        record["segmentation"] = polygon(*record["bbox"])
    data.plant(
        annotation(901, 1, [10, 10, 30, 30], segmentation=polygon(10, 10, 30, 45)),
        annotation(902, 2, [10, 10, 30, 30], segmentation=polygon(10, 10, 30, 30), area=100),
        annotation(903, 3, [10, 10, 30, 30]),
        annotation(904, 3, [60, 10, 30, 30], segmentation=[[1, 2, 3]]),
        annotation(905, 4, [10, 10, 30, 30], segmentation={"size": [9, 9], "counts": [81]}),
        annotation(907, 4, [50, 9, 20, 30], segmentation=polygon(300, 9, 20, 30)),
        annotation(906, 4, [90, 90, 40, 60], segmentation=polygon(90, 90, 40, 60), area=1200),
    )
    findings = data.check().findings
    assert {(f.name, *ids(f)) for f in findings} == {
        ("box-partly-outside", (4, 906)),  # where its mask ends too, and with it the area
        ("segmentation-off-box", (1, 901)),
        ("segmentation-missing", (3, 903)),
        ("segmentation-empty", (4, 907)),
        ("segmentation-unreadable", (3, 904)),
        ("segmentation-unreadable", (4, 905)),
        ("area-differs", (2, 902)),  # that of 901 is its box's
    }
    assert {f.detail for f in findings if f.name == "segmentation-unreadable"} == {
        "skipped: segmentation is not lists of three or more finite points",
        "skipped: the RLE's size is not the image's",
    }


def test_an_area_above_that_of_the_box(data: DataSet) -> None:
    data.plant(
        annotation(901, 1, [10, 10, 30, 30], area=1800), annotation(902, 2, [9, 9, 9, 9], area=0)
    )
    found = data.found()
    assert ids(found["area-differs"]) == [(1, 901), (2, 902)]
    assert found["area-differs"].places[0].detail == "area 1800, width * height 900"


def details(found: dict, name: str) -> list[str]:
    return [spot.detail for spot in found[name].places]


def test_categories(data: DataSet) -> None:
    data.train["categories"] += [
        {"id": 3, "name": "traffic light"},
        {"id": 4, "name": "Traffic-Light"},
        {"id": 5, "name": "cow"},
        {"id": 6, "name": "cow"},
    ]
    data.val["categories"] += [
        {"id": 3, "name": "traffic light"},
        {"id": 7, "name": "horse"},
    ]
    data.val["annotations"][0]["category_id"] = 7
    found = {(f.name, f.split): f for f in data.check().findings}
    named = {key: [spot.detail for spot in finding.places] for key, finding in found.items()}
    assert named == {
        ("category-name-repeated", "train"): ["cow: id 5, id 6"],
        ("category-names-alike", "train"): ["'Traffic-Light', 'traffic light'"],
        ("category-in-one-split", "train"): [
            "Traffic-Light: not in val",
            "cow #5: not in val",
            "cow #6: not in val",
        ],
        ("category-in-one-split", "val"): ["horse: not in train"],
        ("category-unused", ""): ["traffic light", "Traffic-Light", "cow #5", "cow #6"],
        ("category-not-trained", "train"): ["horse"],
    }


def test_rare_categories_and_a_split_without_objects(data: DataSet) -> None:
    many(data, some_boxes(520))
    for record in data.train["annotations"]:
        record["category_id"] = 1 if record["id"] > 102 else 2
    data.val["annotations"] = []
    found = data.found()
    assert details(found, "category-rare") == ["dog: 3"]
    assert found["split-without-objects"].split == "val"


@pytest.mark.parametrize(
    ("split", "lost", "name"),
    [
        ("train", ["annotations"], "nothing-to-learn"),
        ("train", ["images", "annotations"], "split-without-pictures"),
        ("val", ["images", "annotations"], "split-without-pictures"),
    ],
)
def test_what_a_training_refuses_is_an_error(
    data: DataSet, split: str, lost: list[str], name: str
) -> None:
    getattr(data, split).update({key: [] for key in lost})
    found = data.found()
    assert (found[name].split, found[name].severity) == (split, "error")
    assert "split-without-objects" not in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "{", "not a JSON file"),
        (lambda _: "[" * 100_000, "train.json"),
        (lambda c: json.dumps({**c, "images": 3}), "no list 'images'"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_finding(
    data: DataSet, change: Any, message: str
) -> None:
    data.write()
    (data.folder / "train.json").write_text(change(data.train))
    report = check_dataset(data.folder, NO_MODEL)
    (finding,) = (f for f in report.findings if f.name == "annotations-unreadable")
    assert finding.split == "train"
    assert message in finding.detail
    assert [split.name for split in report.splits] == ["val"]
    assert {f.name for f in report.findings} == {"annotations-unreadable", "picture-not-listed"}


def test_what_else_a_reader_says(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def splits(folder: Path) -> dict:
        warnings.warn(f"{folder}: two formats fit", stacklevel=1)
        return find_splits(folder)

    monkeypatch.setattr(reading, "find_splits", splits)
    found = data.found()
    assert set(found) == {"reader-message"}
    assert found["reader-message"].detail == f"{data.folder}: two formats fit"


READERS = {  # what readers of other formats say
    "skipped: the class is not in the list of classes": "unknown-category",
    "skipped: its label is not in the file's list": "unknown-category",
    "skipped: a value is not finite": "box-not-finite",
    "skipped: fewer than five numbers": "box-unreadable",
    "skipped: polygon is broken": "box-unreadable",
    "skipped: polyline is no box": "annotation-left-out",
    "skipped: no bndbox of four finite numbers": "box-unreadable",
    "skipped: the class is not a whole number from 0 on": "unknown-category",
    "skipped: no label": "unknown-category",
    "skipped: no name": "unknown-category",
    "kept with the upright box around a turned one": "annotation-changed",
}


def test_readers_of_other_formats(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write()
    train = find_splits(data.folder)["train"]

    def read(*, masks: bool, **options: Any) -> Annotations:
        notes = AnnotationNotes(train.path)
        for number, kind in enumerate(READERS):
            notes.add(kind, f"labels/001.txt, line {number}")
        if masks:
            notes.add("skipped: no segment", "labels/001.txt, line 99")
        notes.warn()
        found = train.read(masks=False, **options)
        return replace(found, masks=[] if masks else None)

    monkeypatch.setattr(
        reading, "find_splits", lambda _: {"train": Split("yolo", train.path, read)}
    )
    findings = check_dataset(data.folder, NO_MODEL).findings
    assert {f.detail: f.name for f in findings if f.detail} == READERS
    (spot,) = next(f for f in findings if f.name == "annotation-left-out").places
    assert str(spot) == "labels/001.txt, line 5"


def test_ids_that_occur_twice(data: DataSet) -> None:
    data.plant(annotation(10, 1, [1, 2, 30, 40]), annotation(21, 1, [1, 2, 30, 40]))
    data.train["images"] += data.train["images"][:1]
    data.train["categories"].append({"id": 2, "name": "cow"})
    found = {f.name: f for f in data.check().findings if f.split == "train"}
    places = [str(spot) for spot in found["ids-repeated"].places]
    assert places == ["image id 1", "category id 2", "annotation id 10", "annotation id 21"]
    assert "image id 1 occurs more than once" in found["annotations-unreadable"].detail


def test_formats_without_ids_name_the_object(data: DataSet) -> None:
    from fastdet.checking.reading import CheckedSplit, read_splits, spot_of

    data.plant(annotation(901, 1, [90, 10, 0, 20]))
    data.write()
    (train, _), _ = read_splits(data.folder, "apply", False)
    without_ids = CheckedSplit(
        "train", train.source, replace(train.annotations, has_ids=False), None
    )
    assert str(spot_of("train", without_ids.annotations, 8)) == "001.png, image id 1, object 3"
    assert str(without_ids.annotations.where(8)) == "001.png, object 3"


@pytest.mark.parametrize("folder", data_sets("bccd", "coco_by", "nuclei", "trash10"))
def test_real_annotations(folder: Path) -> None:
    report = check_dataset(folder, replace(NO_MODEL, decode=False))
    errors = {finding.name for finding in report.findings if finding.severity == "error"}
    assert errors == ({"picture-missing"} if folder.name == "trash10" else set())
    counts = {(f.name, f.split): f.count for f in report.findings}
    if folder.name == "bccd":  # Pascal VOC's numbers, as its annotations were written
        assert {name for name, _ in counts} == {"boxes-from-1"}
    if folder.name == "trash10":
        assert counts["picture-missing", "train"] == 3902
        assert counts["box-repeated", "train"] == 1


def test_every_kind_is_planted_somewhere() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in KINDS if f'"{name}"' not in text] == []


def test_a_folder_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set"):
        check_dataset(tmp_path, NO_MODEL)
    with pytest.raises(ValueError, match="workers: expected a number from 1 on, got 0"):
        check_dataset(tmp_path, replace(NO_MODEL, workers=0))
