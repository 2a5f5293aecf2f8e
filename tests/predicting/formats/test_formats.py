# SPDX-License-Identifier: BSD-3-Clause
"""Results in every format, read back by fastdet's readers and by other packages."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotcoco import COCO as HOTCOCO
from pycocotools.coco import COCO

from fastdet.data.annotations import Annotations
from fastdet.data.formats import find_splits
from fastdet.data.segmentations import read_segmentation
from fastdet.predicting.formats import CsvOptions, Results, paths, read_results, write
from tests.data_sets import data_sets

pytestmark = pytest.mark.filterwarnings("ignore:.*taken for a confidence")
every_data_set = pytest.mark.parametrize("data", data_sets("bccd", "nuclei"))

RECORDS: list[dict[str, Any]] = [
    {"id": 7, "file_name": "cam1/a.jpg", "height": 50, "width": 100},
    {"id": 3, "file_name": "b.png", "height": 10, "width": 10},
]
CATEGORIES = [{"id": 9, "name": "red dog"}, {"id": 2, "name": "cat"}]
FOUND = [
    {"image_id": 7, "category_id": 9, "bbox": [10.0, 5.0, 20.5, 10.0], "score": 0.75},
    {"image_id": 7, "category_id": 2, "bbox": [0.0, 0.0, 100.0, 50.0], "score": 1e-05},
]


def small() -> Results:
    return Results.of_coco(RECORDS, CATEGORIES, FOUND)


def detections(data: Path, masks: bool = False) -> Results:
    """The val split's objects as if they had been detected, and one picture without any."""
    content = json.loads((data / "val.json").read_text())
    rng = np.random.default_rng(0)
    content["images"] = content["images"][:30]
    shown = {image["id"] for image in content["images"][1:]}
    objects = [o for o in content["annotations"] if o["image_id"] in shown and not o["iscrowd"]]
    found = [
        {
            "image_id": o["image_id"],
            "category_id": o["category_id"],
            "bbox": o["bbox"],
            "score": float(np.float32(rng.random())),
            **({"segmentation": o["segmentation"]} if masks else {}),
        }
        for o in objects
    ]
    return Results.of_coco(content["images"], content["categories"], found)


def read_back(out: Path, images: Path, link: str, format: str, masks: bool = False) -> Annotations:
    """What fastdet's reader finds in the written folder, once it has the pictures."""
    (out / link).symlink_to(images)
    (split,) = find_splits(out, format).values()
    return split.read(masks=masks, exif="apply", files_anywhere=False)


def by_picture(things: Results | Annotations) -> dict[str, list[tuple[str, np.ndarray]]]:
    """The class and the box of each object, by the name of its picture."""
    if isinstance(things, Results):
        names, files = things.classes, [str(image.file_name) for image in things.images]
    else:
        names, files = things.names, things.file_names
    found: dict[str, list[tuple[str, np.ndarray]]] = {name: [] for name in files}
    for index, label, box in zip(things.image_index, things.labels, things.boxes_xywh, strict=True):
        found[files[index]].append((names[label - 1], box))
    return found


def assert_same(expected: Results, got: Annotations, atol: float) -> None:
    ours, theirs = by_picture(expected), by_picture(got)
    assert set(ours) <= set(theirs)
    assert sum(map(len, theirs.values())) == len(expected.scores) > 0
    for name, objects in ours.items():
        assert [label for label, _ in theirs[name]] == [label for label, _ in objects]
        for (_, box), (_, other) in zip(objects, theirs[name], strict=True):
            np.testing.assert_allclose(other, box, rtol=0, atol=atol)


@every_data_set
def test_yolo_is_read_back(data: Path, tmp_path: Path) -> None:
    results = detections(data)
    written = write(results, tmp_path, "yolo")
    assert all(file.is_file() for file in written)
    assert_same(results, read_back(tmp_path, data / "images", "images", "yolo"), atol=1e-9)
    scores = [
        float(line.split()[5])
        for file in sorted((tmp_path / "labels").rglob("*.txt"))
        for line in file.read_text().splitlines()
    ]
    assert sorted(scores) == sorted(results.scores.tolist())


@every_data_set
def test_voc_is_read_back_bit_for_bit(data: Path, tmp_path: Path) -> None:
    results = detections(data)
    write(results, tmp_path, "voc")
    assert_same(results, read_back(tmp_path, data / "images", "JPEGImages", "voc"), atol=0)


@every_data_set
def test_coco_is_read_by_us_and_by_load_res(data: Path, tmp_path: Path) -> None:
    results = detections(data)
    file, index = write(results, tmp_path, "coco")
    again = read_results(file)
    assert again.images == results.images
    assert again.classes == results.classes
    for name in ("image_index", "labels", "boxes_xywh", "scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(results, name))
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "annotations": []}))
    for package in (COCO, HOTCOCO):
        truth: Any = package(str(index))
        load = truth.loadRes if package is COCO else truth.load_res
        loaded = load(str(file))
        assert len(loaded.dataset["annotations"]) == len(results.scores)


@pytest.mark.parametrize("data", data_sets("nuclei"))
def test_masks_are_read_back_pixel_for_pixel(data: Path, tmp_path: Path) -> None:
    results = detections(data, masks=True)
    file, _ = write(results, tmp_path, "coco")
    assert read_results(file).segmentations == results.segmentations
    write(results, tmp_path, "yolo")
    got = read_back(tmp_path, data / "images", "images", "yolo", masks=True)
    assert got.masks is not None
    assert results.segmentations is not None
    masks = dict(zip(map(str, got.file_names), masks_by_picture(got), strict=True))
    for image, rows in zip(results.images, results.rows(), strict=True):
        size = image.height or 0, image.width or 0
        expected = [read_segmentation(results.segmentations[row], *size) for row in rows]
        assert masks[str(image.file_name)] == expected


def masks_by_picture(annotations: Annotations) -> list[list[Any]]:
    assert annotations.masks is not None
    found: list[list[Any]] = [[] for _ in annotations.file_names]
    for index, mask in zip(annotations.image_index, annotations.masks, strict=True):
        found[index].append(mask)
    return found


def test_yolo_by_hand(tmp_path: Path) -> None:
    write(small(), tmp_path, "yolo")
    assert (tmp_path / "labels" / "cam1" / "a.txt").read_text() == (
        "1 0.2025 0.2 0.205 0.2 0.75\n0 0.5 0.5 1.0 1.0 1e-05\n"
    )
    assert (tmp_path / "labels" / "b.txt").read_text() == ""
    assert (tmp_path / "classes.txt").read_text() == "cat\nred dog\n"


def test_voc_by_hand(tmp_path: Path) -> None:
    write(small(), tmp_path, "voc")
    text = "".join((tmp_path / "Annotations" / "cam1" / "a.xml").read_text().split())
    assert "<filename>a.jpg</filename>" in text
    assert (
        "<xmin>11</xmin><ymin>6</ymin><xmax>30.5</xmax><ymax>15</ymax></bndbox>"
        "<score>0.75</score></object>"
    ) in text
    assert "<object>" not in (tmp_path / "Annotations" / "b.xml").read_text()


COMPETITIONS = {
    "as in VinBigData": (
        CsvOptions(csv_nothing="14 1 0 0 1 1"),
        ["1 0.75 10 5 30.5 15 0 0.00001 0 0 100 50", "14 1 0 0 1 1"],
    ),
    "labels from 1": (
        CsvOptions(first_label=1),
        ["2 0.75 10 5 30.5 15 1 0.00001 0 0 100 50", ""],
    ),
    "as in Global Wheat": (
        CsvOptions(csv_row="score x1 y1 w h"),
        ["0.75 10 5 20.5 10 0.00001 0 0 100 50", ""],
    ),
    "as in Open Images": (
        CsvOptions(csv_row="name score x1 y1 x2 y2", csv_fractions=True),
        ["red dog 0.75 0.1 0.1 0.305 0.3 cat 0.00001 0 0 1 1", ""],
    ),
    "centres": (
        CsvOptions(csv_row="label cx cy w h"),
        ["1 20.25 10 20.5 10 0 50 25 100 50", ""],
    ),
}


@pytest.mark.parametrize("name", COMPETITIONS)
def test_csv_of_competitions(name: str, tmp_path: Path) -> None:
    options, expected = COMPETITIONS[name]
    (file,) = write(small(), tmp_path, "csv", options)
    header, *lines = csv.reader(file.read_text().splitlines())
    assert header == ["image_id", "PredictionString"]
    assert lines == [["a", expected[0]], ["b", expected[1]]]


@pytest.mark.parametrize(
    ("image", "expected"), [("file_name", ["cam1/a.jpg", "b.png"]), ("id", ["7", "3"])]
)
def test_csv_image_names(image: Any, expected: list[str], tmp_path: Path) -> None:
    (file,) = write(small(), tmp_path, "csv", CsvOptions(csv_image=image))
    assert [line.split(",")[0] for line in file.read_text().splitlines()[1:]] == expected


def test_csv_quotes_what_csv_must(tmp_path: Path) -> None:
    results = replace(small(), classes=['a,"b"', "c"])
    (file,) = write(results, tmp_path, "csv", CsvOptions(csv_row="name score"))
    assert list(csv.reader(file.read_text().splitlines()))[1] == ["a", 'c 0.75 a,"b" 0.00001']


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CsvOptions(first_label=2), "first_label: expected 0 or 1, got 2"),  # type: ignore[arg-type]
        (CsvOptions(csv_row="label x3"), "csv_row: expected words out of label .* got x3"),
        (CsvOptions(csv_row=" "), "csv_row: .* got none"),
        (CsvOptions(csv_image="path"), "csv_image: .* got path"),  # type: ignore[arg-type]
    ],
)
def test_csv_options_out_of_range(options: CsvOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write(small(), tmp_path, "csv", options)


def images_of(*names: str | None) -> Results:
    records = [{"id": i, "file_name": name} for i, name in enumerate(names, 1)]
    return Results.of_coco(records, CATEGORIES, [])


@pytest.mark.parametrize("format", ["yolo", "voc"])
@pytest.mark.parametrize(
    ("results", "message"),
    [
        (images_of("a.jpg", "a.png"), r"image id 1 \(a.jpg\) and image id 2 \(a.png\) would share"),
        (images_of("../a.jpg"), "image id 1 .*: expected a file name inside the folder"),
        (images_of("/a.jpg"), "expected a file name inside the folder"),
        (images_of(None), "image id 1: expected its file name, got none"),
    ],
)
def test_names_without_a_file(format: Any, results: Results, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        paths(results.images, tmp_path, format)
    with pytest.raises(ValueError, match=message):
        write(results, tmp_path, format)
    assert not list(tmp_path.rglob("*"))


def test_csv_names_that_are_not_unique(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would both be a: give --csv-image file_name or id"):
        write(images_of("1/a.jpg", "2/a.jpg"), tmp_path, "csv")
    with pytest.raises(ValueError, match="image id 1: expected its file name, got none"):
        write(images_of(None), tmp_path, "csv")


def test_pictures_of_unknown_size(tmp_path: Path) -> None:
    unreadable = images_of("a.jpg")
    write(unreadable, tmp_path, "csv")
    assert (tmp_path / "detections.csv").read_text().splitlines()[1] == "a,"
    for format in ("yolo", "voc"):
        write(unreadable, tmp_path / format, format)
        assert not list((tmp_path / format).rglob("a.*"))
    records = [{"id": 7, "file_name": "a.jpg"}]
    found = Results.of_coco(records, CATEGORIES, FOUND)
    for format in ("yolo", "voc"):
        with pytest.raises(ValueError, match=r"image id 7 \(a.jpg\): expected its height"):
            write(found, tmp_path / format, format)
    with pytest.raises(ValueError, match="expected its height and width"):
        write(found, tmp_path, "csv", CsvOptions(csv_fractions=True))


def test_classes_that_a_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected names of classes that fit on a line, got"):
        write(replace(small(), classes=["a\nb", "c"]), tmp_path, "yolo")
    with pytest.raises(ValueError, match="expected classes of different names, got 'c' twice"):
        write(replace(small(), classes=["c", "c"]), tmp_path, "voc")
    with pytest.raises(ValueError, match="format: expected coco, csv, yolo, voc, got xml"):
        write(small(), tmp_path, "xml")  # type: ignore[arg-type]


def test_results_of_another_tool(tmp_path: Path) -> None:
    file = tmp_path / "bbox.json"
    file.write_text(json.dumps([{**FOUND[0], "id": 1, "area": 2.0}]))
    results = read_results(file)
    assert not results.has_images
    assert (results.images[0].id, results.classes, results.category_ids) == (7, ["9"], [9])
    content = {"images": RECORDS, "categories": CATEGORIES, "annotations": []}
    index = tmp_path / "val.json"
    index.write_text(json.dumps(content))
    results = read_results(file, index)
    assert results.has_images
    assert len(results.images) == 2
    assert results.classes == ["cat", "red dog"]
    assert results.labels.tolist() == [2]
    assert results.boxes.tolist() == [[10, 5, 30.5, 15]]
    file.write_text("[]")
    assert read_results(file).boxes.shape == (0, 4)
    assert read_results(file).rows() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "r.json: expected COCO results, a list of .* got an object"),
        ("[1", r"r.json: expected COCO results"),
        ('[{"image_id": 1}]', "row 0: .* it has no category_id and no bbox and no score"),
        (json.dumps([{**FOUND[0], "bbox": [1, 2, 3]}]), r"row 0: .* bbox \[1, 2, 3\]"),
        (
            json.dumps([{**FOUND[0], "image_id": "7"}]),
            "row 0: .*integers.* got image_id .7.",
        ),
        (json.dumps([{**FOUND[0], "score": float("nan")}]), "row 0: expected a finite score"),
        (json.dumps([{**FOUND[0], "bbox": [1e308, 0, 1e308, 1]}]), "row 0: expected a finite"),
        (json.dumps([{**FOUND[0], "bbox": [9, 9, -5, 2]}]), "row 0: .* sides from 0 on, got"),
        (json.dumps([{**FOUND[0], "image_id": 8}]), "image id 8 is not among the images of"),
        (json.dumps([{**FOUND[0], "category_id": 8}]), "category id 8 is not among those of"),
    ],
)
def test_broken_results(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    content = {"images": RECORDS, "categories": CATEGORIES}
    (tmp_path / "images.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_results(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"file_name": 5}, "images.json: image id 7: expected a file_name, got 5"),
        ({"file_name": "a\0.jpg"}, "expected a file_name, got 'a.x00.jpg'"),
        ({"height": "50"}, "image id 7: expected a height in pixels, got '50'"),
        ({"width": -4}, "expected a width in pixels, got -4"),
        ({"width": 10**30}, "expected a width in pixels, got 1000"),
    ],
)
def test_broken_images(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    file, index = tmp_path / "r.json", tmp_path / "images.json"
    file.write_text(json.dumps(FOUND[:1]))
    images = [{**RECORDS[0], **record}]
    index.write_text(json.dumps({"images": images, "categories": CATEGORIES}))
    with pytest.raises(ValueError, match=message):
        read_results(file)
    index.write_text(
        json.dumps({"images": [{**RECORDS[0], "height": 50.0}], "categories": CATEGORIES})
    )
    assert read_results(file).images[0].height == 50


def test_ids_and_numbers_as_some_tools_write_them(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('[{"image_id": 7.0, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]')
    assert read_results(file).images[0].id == 7
