# SPDX-License-Identifier: BSD-3-Clause
"""LabelMe: what labelme writes, groups, the places of pictures, the splits, the defects."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdet.data import open_dataset
from fastdet.data.formats import find_splits, labelme
from fastdet.data.segmentations import decode
from tests.data.formats.test_voc import picture, put, warned

# Written by labelme 6.3.1; the mask is that of the L-shape which `test_masks` expects.
LABELME = {
    "version": "6.3.1",
    "flags": {},
    "shapes": [
        {
            "label": "cat",
            "points": [[30.5, 28.0], [10.0, 20.5]],
            "group_id": None,
            "description": "",
            "shape_type": "rectangle",
            "flags": {},
            "mask": None,
        },
        {
            "label": "dog",
            "points": [[1, 1], [11, 1], [11, 9]],
            "group_id": 1,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        },
        {
            "label": "dog",
            "points": [[20, 1], [25, 1], [25, 9.5]],
            "group_id": 1,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        },
        {
            "label": "cat",
            "points": [[20, 15], [23, 19]],
            "group_id": None,
            "description": "",
            "shape_type": "circle",
            "flags": {},
            "mask": None,
        },
        {
            "label": "cat",
            "points": [[1, 1], [5, 5]],
            "group_id": None,
            "description": "",
            "shape_type": "line",
            "flags": {},
            "mask": None,
        },
        {
            "label": "dog",
            "points": [[8.0, 9.0], [12.0, 12.0]],
            "group_id": None,
            "description": "",
            "shape_type": "mask",
            "flags": {},
            "mask": "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAECAAAAABjWKqcAAAAGElEQVR4nGP8z8DAwMDwn4GBgYGJ"
            "AUECACgsAgRO/l/uAAAAAElFTkSuQmCC",
        },
        {
            "label": "__ignore__",
            "points": [[0, 0], [4, 4]],
            "group_id": None,
            "description": "",
            "shape_type": "rectangle",
            "flags": {},
            "mask": None,
        },
    ],
    "imagePath": "a.jpg",
    "imageData": None,
    "imageHeight": 30,
    "imageWidth": 40,
}

# Of an old version, without types and sizes.
OLD = {
    "flags": {},
    "shapes": [
        {
            "label": "cat",
            "line_color": None,
            "fill_color": None,
            "points": [[30, 11], [17, 11], [17, 28], [30, 28]],
        }
    ],
    "lineColor": [0, 255, 0, 128],
    "fillColor": [255, 0, 0, 128],
    "imagePath": "a.jpg",
    "imageData": None,
}


def shape(points, kind="polygon", label="cat", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def save(path: Path, *shapes, **changes) -> Path:
    content = {**copy.deepcopy(LABELME), "shapes": list(shapes), **changes}
    return put(path, json.dumps(content))


def read(folder: Path, split: str = "default", masks: bool = False, anywhere: bool = False):
    found = labelme.splits(folder)[split]
    assert found.format == "labelme"
    return found.read(masks=masks, exif="apply", files_anywhere=anywhere)


def test_what_labelme_writes(tmp_path) -> None:
    put(tmp_path / "a.json", json.dumps(LABELME, indent=2))
    picture(tmp_path / "a.jpg")
    with warned("1 annotation skipped: line is no box (first: a.json, object 5)"):
        found = read(tmp_path)
    assert found.boxes_xywh.tolist() == [
        [10, 20.5, 20.5, 7.5],
        [1, 1, 24, 8.5],  # two polygons of one group
        [15, 10, 10, 10],
        [8, 9, 5, 4],
    ]
    assert found.names == ["cat", "dog"]
    assert found.labels.tolist() == [1, 2, 1, 2]
    assert found.file_names == ["a.jpg"]
    assert found.image_sizes.tolist() == [[30, 40]]
    assert not found.has_ids
    dataset = open_dataset(tmp_path, "default")
    assert dataset[0][1]["boxes"][0].tolist() == [10, 20.5, 30.5, 28]


def test_masks(tmp_path) -> None:
    put(tmp_path / "a.json", json.dumps(LABELME))
    with warned(
        "1 annotation skipped: line is no box",
        "1 annotation skipped: no mask (first: a.jpg, object 1)",
    ):
        found = read(tmp_path, masks=True)
    assert found.masks is not None
    group, circle, window = decode(found.masks, 30, 40).astype(bool)
    assert group[2, 9]  # of both polygons
    assert group[2, 24]
    assert not group[:, 12:20].any()
    assert abs(circle.sum() - math.pi * 25) < 4
    expected = np.zeros((30, 40), bool)
    expected[9, 8:13] = expected[9:13, 8] = True
    assert np.array_equal(window, expected)


def test_old_files(tmp_path) -> None:
    put(tmp_path / "a.json", json.dumps(OLD))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    found = read(tmp_path)
    assert found.boxes_xywh.tolist() == [[17, 11, 13, 17]]
    assert found.image_sizes.tolist() == [[30, 40]]


def test_groups(tmp_path) -> None:
    """Of one label and group is one object, in the place of its first shape."""
    one, other = [[1, 1], [3, 3]], [[10, 10], [12, 13]]
    save(
        tmp_path / "a.json",
        shape(one, "rectangle", group_id=0),
        shape(one, "rectangle"),
        shape(other, "rectangle", "dog", group_id=0),
        shape(other, "rectangle", group_id=0),
        shape([[1, 1]], "point", "eye", group_id=0),
    )
    found = read(tmp_path)
    assert found.boxes_xywh.tolist() == [[1, 1, 11, 12], [1, 1, 2, 2], [10, 10, 2, 3]]
    assert found.labels.tolist() == [1, 1, 2]
    assert found.names == ["cat", "dog"]  # not "eye"


def test_rectangles_by_any_corners(tmp_path) -> None:
    corners = [[5, 1], [1, 7]], [[1, 7], [5, 1]], [[5, 7], [1, 1]], [[1, 1], [5, 1], [5, 7], [1, 7]]
    save(
        tmp_path / "a.json",
        *(shape(points, "rectangle") for points in corners),
        shape([[3, 0], [6, 3], [3, 6], [0, 3]], "oriented_rectangle"),
        shape([[3, 0], [6, 3], [3, 6], [0, 3]], "rotation"),
    )
    found = read(tmp_path)
    assert found.boxes_xywh.tolist() == [[1, 1, 4, 6]] * 4 + [[0, 0, 6, 6]] * 2


def test_classes_and_splits(tmp_path) -> None:
    """The classes are those of all splits; ids follow the names of the pictures."""
    save(tmp_path / "train" / "b.json", shape([[1, 1], [3, 3]], "rectangle"), imagePath="z.jpg")
    save(tmp_path / "train" / "deep" / "c.json", shape([[1, 1], [3, 3]], "rectangle", "ant"))
    save(tmp_path / "valid" / "a.json", shape([[1, 1], [3, 3]], "rectangle", "zebra"))
    save(tmp_path / "train" / ".ipynb_checkpoints" / "a.json", shape([[1, 1], [3, 3]], "rectangle"))
    put(tmp_path / "train" / "other.json", '{"images": []}')
    assert list(find_splits(tmp_path)) == ["train", "val"]
    train, valid = read(tmp_path, "train"), read(tmp_path, "val")
    assert train.names == valid.names == ["ant", "cat", "zebra"]
    assert train.file_names == ["deep/a.jpg", "z.jpg"]
    assert train.labels.tolist() == [1, 2]
    assert valid.images == tmp_path / "valid"


def test_where_the_picture_is(tmp_path, monkeypatch) -> None:
    """Where imagePath says; else beside the file, by that name or by the file's own."""
    root = tmp_path / "data"
    save(root / "json" / "a.json", imagePath="..\\images\\a.jpg")
    picture(root / "images" / "a.jpg")
    assert read(root).file_names == ["images/a.jpg"]
    save(root / "json" / "a.json", imagePath="/home/user/pictures/a.jpg")
    with pytest.raises(ValueError, match=r"a\.json: the file name '\.\./.*a\.jpg' leads out of"):
        read(root)
    picture(root / "json" / "a.png")
    assert read(root).file_names == ["json/a.png"]
    picture(root / "json" / "a.jpg")
    assert read(root).file_names == ["json/a.jpg"]
    picture(tmp_path / "b.jpg")
    save(root / "json" / "a.json", imagePath="../../b.jpg")
    (root / "json" / "a.png").unlink()
    (root / "json" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="leads out of the image folder"):
        read(root)
    assert read(root, anywhere=True).file_names == ["../b.jpg"]
    with pytest.raises(ValueError, match="leads out of the image folder"):
        read(root / "json" / "..")
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match="leads out of the image folder"):
        read(Path())
    save(root / "json" / "a.json", imagePath="../images/a.jpg")
    assert read(Path()).file_names == read(root / "json" / "..").file_names == ["images/a.jpg"]
    # Two splits with their pictures in one folder.
    save(root / "train" / "a.json", imagePath="../images/a.jpg")
    save(root / "val" / "a.json", imagePath="../images/a.jpg")
    found = read(root, "train")
    assert (found.images, found.file_names) == (root, ["images/a.jpg"])


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("linestrip is no box", shape([[1, 1], [2, 2], [3, 3]], "linestrip")),
        ("points is no box", shape([[1, 1], [2, 2]], "points")),
        ("polygon is broken", shape([[1, 1], [2, 2]])),
        ("polygon is broken", shape([[1, 1], [2, 2], [3, None]])),
        ("polygon is broken", shape([[1, 1], [2, 2], [3]])),
        ("polygon is broken", shape([[1, 1], [2, 2], [3, float("inf")]])),
        ("polygon is broken", {"label": "cat"}),
        ("rectangle is broken", shape([[1, 1]], "rectangle")),
        ("circle is broken", shape([[1, 1], [2, 2], [3, 3]], "circle")),
        ("mask is broken", shape([[1, 1], [2, 2]], "mask")),
        ("mask is broken", shape([[1, 1], [2, 2]], "mask", mask="AAAA")),
        ("mask is broken", shape([[1e300, 1], [2, 2]], "mask", mask=LABELME["shapes"][5]["mask"])),
        ("no label", shape([[1, 1], [2, 2]], "rectangle", "  ")),
        ("no label", {"points": []}),
        ("no label", "shape"),
    ],
)
def test_bad_shapes_are_counted_in_one_warning(tmp_path, kind, bad) -> None:
    save(tmp_path / "a.json", bad, shape([[1, 2], [3, 4]], "rectangle"), bad)
    with warned(f"{tmp_path}: 2 annotations skipped: {kind} (first: a.json, object 1)"):
        assert read(tmp_path).boxes_xywh.tolist() == [[1, 2, 2, 2]]


def test_a_mask_larger_than_the_image_is_not_decoded(tmp_path, monkeypatch) -> None:
    decoded = []
    monkeypatch.setattr(Image.Image, "convert", lambda *_: decoded.append(1))
    save(tmp_path / "a.json", LABELME["shapes"][5], imageWidth=3)
    with warned("1 annotation skipped: mask is broken"):
        assert not len(read(tmp_path).boxes_xywh)
    assert not decoded


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"shapes": [', "not a JSON file"),
        ('{"shapes": ' + "[" * 100_000, "not a JSON file"),
        ('{"shapes": {}, "imagePath": "a.jpg"}', "expected an object with a list 'shapes'"),
        ('[{"shapes": []}]', "expected an object with a list 'shapes'"),
        ('{"shapes": []}', "expected an imagePath, got None"),
        ('{"shapes": [], "imagePath": 3}', "expected an imagePath, got 3"),
        ('{"shapes": [], "imagePath": "\\u0000"}', r"expected an imagePath, got '\\x00'"),
        ('{"shapes": [], "imagePath": "a.jpg"}', r"a\.jpg: no such image file"),
        (
            '{"shapes": [], "imagePath": "a.jpg", "imageWidth": "x", "imageHeight": 3}',
            "expected a width and a height from 1",
        ),
        (
            '{"shapes": [], "imagePath": "a.jpg", "imageWidth": 1'
            + 400 * "0"
            + ', "imageHeight": 3}',
            "expected a width and a height from 1",
        ),
        (b'{"shapes": [], "imagePath": "\xff"}', "not a JSON file"),
    ],
)
def test_a_broken_file_is_one_error(tmp_path, text, match) -> None:
    put(tmp_path / "a.json", text)
    with pytest.raises((FileNotFoundError, ValueError), match=match) as error:
        read(tmp_path)
    assert str(tmp_path / "a") in str(error.value)
    assert "\n" not in str(error.value)


def test_embedded_pictures_are_not_kept(tmp_path) -> None:
    save(tmp_path / "a.json", imageData="A" * 1000)
    assert "imageData" not in labelme._read(tmp_path / "a.json")


def test_other_json_is_no_labelme(tmp_path) -> None:
    put(tmp_path / "train.json", '{"images": [], "annotations": [], "categories": []}')
    assert labelme.splits(tmp_path) == {}
    assert list(find_splits(tmp_path)) == ["train"]
    assert labelme.splits(tmp_path / "nowhere") == {}
