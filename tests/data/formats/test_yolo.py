# SPDX-License-Identifier: BSD-3-Clause
"""YOLO folders as real tools write them; every dialect and defect of labels and descriptions."""

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fastdet.data import DetectionDataset, open_dataset
from fastdet.data.formats import find_splits
from fastdet.evaluation import CocoEvaluator
from tests.data.formats.trees import write_tree

NAMES = "nc: 2\nnames: [cat, dog]\n"
# 1 2 11 22 of 40 x 30, as Datumaro, supervision and sahi write it.
DOG = "1 0.150000 0.400000 0.250000 0.666667\n"
DOG_XYXY = [1, 2, 11, 22]

# Writer: its files, the pictures, and for each split the image folder and the file names.
WRITERS: dict[str, tuple[dict[str, str], list[str], dict[str, tuple[str, list[str]]]]] = {
    # Datumaro 1.13.12, format "yolo": darknet's, with a working folder `data` in front.
    "Datumaro yolo": (
        {
            "obj.data": "classes = 2\nval = data/val.txt\ntrain = data/train.txt\n"
            "names = data/obj.names\nbackup = backup/\n",
            "obj.names": "cat\ndog\n",
            "train.txt": "data/obj_train_data/a.png\ndata/obj_train_data/sub/b.png\n",
            "val.txt": "data/obj_val_data/c.png\n",
            "obj_train_data/a.txt": DOG,
            "obj_train_data/sub/b.txt": "",
            "obj_val_data/c.txt": "1 0.15 0.4 0.25 0.666667\n",
        },
        ["obj_train_data/a.png", "obj_train_data/sub/b.png", "obj_val_data/c.png"],
        {"train": ("obj_train_data", ["a.png", "sub/b.png"]), "val": ("obj_val_data", ["c.png"])},
    ),
    # Datumaro 1.13.12, format "yolo_ultralytics".
    "Datumaro yolo_ultralytics": (
        {
            "data.yaml": "val: val.txt\ntrain: train.txt\nnames:\n  0: cat\n  1: dog\n",
            "train.txt": "./images/train/a.png\n./images/train/sub/b.png\n",
            "val.txt": "./images/val/c.png\n",
            "labels/train/a.txt": DOG,
            "labels/train/sub/b.txt": "",
            "labels/val/c.txt": DOG,
        },
        ["images/train/a.png", "images/train/sub/b.png", "images/val/c.png"],
        {"train": ("images/train", ["a.png", "sub/b.png"]), "val": ("images/val", ["c.png"])},
    ),
    # supervision 0.31.2, as_yolo("images", "labels", "data.yaml"): no splits.
    "supervision": (
        {
            "data.yaml": "nc: 2\nnames: [cat, dog]\n",
            "labels/a.txt": "1 0.15000 0.40000 0.25000 0.66667",
            "labels/b.txt": "",
        },
        ["images/a.png", "images/b.png"],
        {"default": ("images", ["a.png", "b.png"])},
    ),
    # Label Studio (label-studio-sdk 2.1.2), format YOLO with download_resources.
    "Label Studio": (
        {
            "classes.txt": "cat\ndog\n",
            "notes.json": '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}',
            "labels/abc-a.txt": "1 0.15 0.3999999999999999 0.25 0.6666666666666665\n",
        },
        ["images/abc-a.png"],
        {"default": ("images", ["abc-a.png"])},
    ),
    # sahi 0.12.8, export_as_yolo: data.yml with absolute paths, the labels beside the pictures.
    "sahi": (
        {
            "data.yml": "names: [cat, dog]\nnc: 2\ntrain: {folder}/train\nval: {folder}/val\n",
            "train/a.txt": "1 0.15000000000000002 0.4 0.25 0.6666666666666666\n",
            "val/b.txt": "1 0.15000000000000002 0.4 0.25 0.6666666666666666\n",
        },
        ["train/a.png", "val/b.png"],
        {"train": ("train", ["a.png"]), "val": ("val", ["b.png"])},
    ),
    # Roboflow's exports: one folder up from where the files are; the test split may be missing.
    "Roboflow": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
            "nc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: w\n  version: 1\n",
            "README.dataset.txt": "",
            "train/labels/a_png.rf.0c1d.txt": DOG,
            "valid/labels/b_png.rf.9f2e.txt": DOG,
        },
        ["train/images/a_png.rf.0c1d.png", "valid/images/b_png.rf.9f2e.png"],
        {
            "train": ("train/images", ["a_png.rf.0c1d.png"]),
            "val": ("valid/images", ["b_png.rf.9f2e.png"]),
        },
    ),
    # fiftyone 1.22.1, YOLOv5DatasetExporter.
    "fiftyone YOLOv5": (
        {
            "dataset.yaml": "names:\n  0: cat\n  1: dog\npath: {folder}\n"
            "train: ./images/train/\nvalidation: ./images/validation/\n",
            "labels/train/a.txt": DOG,
            "labels/validation/b.txt": DOG,
        },
        ["images/train/a.png", "images/validation/b.png"],
        {"train": ("images/train", ["a.png"]), "val": ("images/validation", ["b.png"])},
    ),
    # fiftyone 1.22.1, YOLOv4DatasetExporter.
    "fiftyone YOLOv4": (
        {"obj.names": "cat\ndog\n", "images.txt": "data/a.png\n", "data/a.txt": DOG},
        ["data/a.png"],
        {"default": ("data", ["a.png"])},
    ),
    # labelImg 1.8.6: classes.txt and the labels in the folder of the pictures.
    "labelImg": (
        {"classes.txt": "cat\ndog\n", "a.txt": DOG},
        ["a.png"],
        {"default": (".", ["a.png"])},
    ),
    "Ultralytics' folders without a file": (
        {"classes.txt": "cat\ndog\n", "labels/train/a.txt": DOG, "labels/valid/b.txt": DOG},
        ["images/train/a.png", "images/valid/b.png"],
        {"train": ("images/train", ["a.png"]), "val": ("images/valid", ["b.png"])},
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writers(tmp_path: Path, writer: str) -> None:
    texts, pictures, expected = WRITERS[writer]
    texts = {name: text.replace("{folder}", str(tmp_path)) for name, text in texts.items()}
    write_tree(tmp_path, texts, pictures)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(find_splits(tmp_path)) == list(expected)
        for split, (images, file_names) in expected.items():
            dataset = open_dataset(tmp_path, split)
            assert dataset.images.resolve() == (tmp_path / images).resolve()
            assert dataset.annotations.file_names == file_names
            assert dataset.classes == ["background", "cat", "dog"]
            image, target = dataset[0]
            assert tuple(image.shape) == (3, 30, 40)
            np.testing.assert_allclose(target["boxes"], [DOG_XYXY], atol=2e-4)
            assert target["labels"].tolist() == [2]
            assert [len(dataset.target(i)["boxes"]) for i in range(1, len(dataset))] == [0] * (
                len(dataset) - 1
            )


def test_a_folder_that_was_moved(tmp_path: Path) -> None:
    """Descriptions with absolute paths, read from another place."""
    for writer in ("sahi", "fiftyone YOLOv5"):
        texts, pictures, expected = WRITERS[writer]
        texts = {name: text.replace("{folder}", "/gone/data") for name, text in texts.items()}
        folder = write_tree(tmp_path / writer, texts, pictures)
        for split, (images, _) in expected.items():
            assert open_dataset(folder, split).images == folder / images


def yolo(folder: Path, labels: str, names: str = NAMES, **files: str) -> Path:
    """A data set of one picture of 40 x 30, images/a.png, in train and val."""
    texts = {"data.yaml": f"train: images\nval: images\n{names}", "labels/a.txt": labels, **files}
    return write_tree(folder, texts, ["images/a.png"])


# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        "1 0.15 0.4 0.25 0.5\n",
        "1 0.15 0.4 0.25 0.5",
        "\r\n1 0.15 0.4 0.25 0.5\r\n\r\n",
        "1\t0.15\t0.4\t0.25\t0.5\n",
        "  1.0   1.5e-01 4e-1 +0.25 .5  \n",
        "\ufeff1 0.15 0.4 0.25 0.5\n",
        "1 0.15 0.4 0.25 0.5\r1 0.15 0.4 0.25 0.6\r",
    ],
)
def test_ways_to_write_a_row(tmp_path: Path, labels: str) -> None:
    annotations = open_dataset(yolo(tmp_path, labels), "train").annotations
    assert annotations.boxes_xywh[0].tolist() == [1.0, 4.5, 10.0, 15.0]
    assert annotations.labels[0] == 2
    assert annotations.areas[0] == 150
    assert not annotations.crowd.any()
    assert not annotations.has_ids


def test_boxes_are_as_exact_as_they_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((200, 4))
    labels = "".join(f"0 {' '.join(map(repr, row.tolist()))}\n" for row in rows)
    found = open_dataset(yolo(tmp_path, labels), "train").annotations.boxes_xywh
    (x, y, w, h), width, height = rows.T, 40, 30
    expected = [x * width - w * width / 2, y * height - h * height / 2, w * width, h * height]
    assert np.array_equal(found, np.column_stack(expected))


def test_no_value_is_clipped_but_items_are(tmp_path: Path) -> None:
    dataset = open_dataset(yolo(tmp_path, "0 0.0 1.2 0.5 0.8\n"), "train")
    assert dataset.annotations.boxes_xywh.tolist() == [[-10, 24, 20, 24]]
    assert dataset.target(0)["boxes"].tolist() == [[0, 24, 10, 30]]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("1 0.5 0.5 0.5", "skipped: fewer than five numbers"),
        ("1", "skipped: fewer than five numbers"),
        ("cat 0.5 0.5 0.1 0.1", "skipped: a value is not a number"),
        ("1,0.5,0.5,0.1,0.1", "skipped: a value is not a number"),
        ("1 0.5 nan 0.1 0.1", "skipped: a value is not finite"),
        ("1 0.5 0.5 inf 0.1", "skipped: a value is not finite"),
        ("1 0.5 0.5 1e308 0.1", "skipped: a value is not finite"),
        ("1 0.1 0.1 1e308 0.2 0.3 0.3", "skipped: a value is not finite"),
        ("1e-05 0.5 0.5 0.1 0.1", "skipped: the class is not a whole number from 0 on"),
        ("nan 0.5 0.5 0.1 0.1", "skipped: the class is not a whole number from 0 on"),
        ("-1 0.5 0.5 0.1 0.1", "skipped: the class is not a whole number from 0 on"),
        ("2 0.5 0.5 0.1 0.1", "skipped: the class is not in the list of classes"),
        ("1e300 0.5 0.5 0.1 0.1", "skipped: the class is not in the list of classes"),
        ("1 0.5 0.5 0.1 0.1 0.9", "kept without its last number, taken for a confidence"),
        ("1 0.1 0.1 0.2 0.1 0.2 0.2 0.9", "kept without its last number, taken for a confidence"),
    ],
)
def test_bad_rows_are_counted_in_one_warning(tmp_path: Path, row: str, kind: str) -> None:
    folder = yolo(tmp_path, f"{DOG}{row}\n\n{row} \n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        annotations = open_dataset(folder, "train").annotations
    messages = [str(warning.message) for warning in caught if "repeat" not in str(warning.message)]
    file = folder / "labels/a.txt"
    assert messages == [f"{folder / 'images'}: 2 annotations {kind} (first: {file}, line 2)"]
    assert len(annotations.labels) == (3 if kind.startswith("kept") else 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1 0.5 0.5 -0.1 0.1", "width or height is not positive"),
        ("1 0.5 0.5 0.1 0", "width or height is not positive"),
        ("1 1.5 0.5 0.1 0.1", "bbox is outside the image"),
    ],
)
def test_unusable_boxes_are_told_by_their_picture(tmp_path: Path, row: str, message: str) -> None:
    with pytest.warns(UserWarning, match=rf"{message} \(first: a\.png, object 2\)"):
        dataset = open_dataset(yolo(tmp_path, f"{DOG}{row}\n"), "train")
    assert dataset.num_objects == 1


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 annotations kept that repeat .*a\.png, object 2"):
        assert open_dataset(yolo(tmp_path, DOG * 3), "train").num_objects == 3


SEGMENT = [0.1, 0.1, 0.6, 0.2, 0.3, 0.9]


def test_segments_are_boxes_and_masks(tmp_path: Path) -> None:
    folder = yolo(tmp_path, f"0 {' '.join(map(str, SEGMENT))}\n{DOG}")
    dataset = open_dataset(folder, "train")
    expected = [[4, 3, 20, 24], [1, 2, 10, 20]]
    np.testing.assert_allclose(dataset.annotations.boxes_xywh, expected, atol=1e-4)
    corners = np.array(SEGMENT).reshape(-1, 2) * [40, 30]
    a, b, c = corners
    area = abs(np.linalg.det(np.stack([b - a, c - a]))) / 2
    np.testing.assert_allclose(dataset.annotations.areas[0], area)
    with pytest.warns(UserWarning, match=r"1 annotation skipped: no segment \(first: .*line 2\)"):
        _, target = open_dataset(folder, "train", masks=True)[0]
    (polygon,) = coco_mask.frPyObjects([corners.ravel().tolist()], 30, 40)
    assert np.array_equal(target["masks"][0].numpy(), coco_mask.decode(polygon))
    np.testing.assert_allclose(target["boxes"], [[4, 3, 24, 27]], atol=1e-4)


def test_corners_of_rotated_boxes_are_a_segment(tmp_path: Path) -> None:
    """YOLO OBB: class x1 y1 ... x4 y4, as label-studio-sdk 2.1.2 writes it."""
    row = "1 0.025 0.0666667 0.275 0.0666667 0.275 0.7333333 0.025 0.7333333\n"
    dataset = open_dataset(yolo(tmp_path, row), "train")
    np.testing.assert_allclose(dataset.target(0)["boxes"], [DOG_XYXY], atol=1e-4)


def test_key_points_are_left_out(tmp_path: Path) -> None:
    points = " 0.5 0.5 2 0.25 0.25 1"
    folder = yolo(tmp_path, DOG.strip() + points, NAMES + "kpt_shape: [2, 3]\n")
    with pytest.warns(UserWarning, match="1 annotation kept without its key points"):
        dataset = open_dataset(folder, "train")
    np.testing.assert_allclose(dataset.target(0)["boxes"], [DOG_XYXY], atol=1e-4)


def test_backgrounds(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "\n")
    write_tree(folder, {}, ["images/b.png"])
    dataset = open_dataset(folder, "train")
    assert dataset.image_ids == [1, 2]
    assert dataset.num_objects == 0
    (folder / "labels/a.txt").unlink()
    with pytest.warns(UserWarning, match=r"none of its 2 pictures has a label file") as caught:
        open_dataset(folder, "train")
    assert str(folder / "labels/a.txt") in str(caught[0].message)
    assert str(folder / "images/a.txt") in str(caught[0].message)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xfe1\0 \0", b"0 0.5 \xe9"])
def test_a_label_file_that_is_no_text_is_an_error(tmp_path: Path, content: bytes) -> None:
    folder = yolo(tmp_path, "")
    (folder / "labels/a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"labels/a\.txt: expected a text file of labels"):
        open_dataset(folder, "train")


# ---- pictures ------------------------------------------------------------------------------------


def test_ids_count_by_the_file_names(tmp_path: Path) -> None:
    folder = yolo(tmp_path, DOG)
    write_tree(folder, {"labels/10.txt": DOG + "0 0.5 0.5 0.5 0.5"}, ["images/10.png"])
    write_tree(
        folder, {"labels/b/x.txt": DOG}, ["images/b/x.png", "images/9.jpg", "images/._a.png"]
    )
    annotations = open_dataset(folder, "train").annotations
    assert annotations.file_names == ["10.png", "9.jpg", "a.png", "b/x.png"]
    assert annotations.image_ids == [1, 2, 3, 4]
    assert annotations.annotation_ids.tolist() == [1, 2, 3, 4]
    assert annotations.image_index.tolist() == [0, 0, 2, 3]
    assert annotations.category_ids == [1, 2]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_labels_are_parts_of_the_picture_as_it_is_displayed(
    tmp_path: Path, orientation: int
) -> None:
    folder = yolo(tmp_path, "1 0.25 0.5 0.5 1\n")
    (folder / "images/a.png").unlink()
    turn = Image.Exif()
    turn[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(folder / "images/a.jpg", exif=turn)
    for exif, upright in (("apply", orientation in (1, 3)), ("ignore", True)):
        dataset = open_dataset(folder, "train", exif=exif)
        image, target = dataset[0]
        assert tuple(image.shape) == ((3, 30, 40) if upright else (3, 40, 30))
        assert target["boxes"].tolist() == [[0, 0, 20, 30] if upright else [0, 0, 15, 40]]


def test_pictures_that_cannot_be_read_are_one_error(tmp_path: Path) -> None:
    folder = yolo(tmp_path, DOG, **{"images/b.png": "", "images/c.jpg": "no picture"})
    with pytest.raises(ValueError, match=r"2 of 3 pictures cannot be read.*first: .*b\.png"):
        open_dataset(folder, "train")


def test_links_in_a_circle_and_folders_named_like_pictures(tmp_path: Path) -> None:
    folder = yolo(tmp_path, DOG, **{"images/d.png/x": "", "labels/d.txt/x": ""})
    (folder / "images/again").symlink_to(folder / "images", target_is_directory=True)
    (folder / "images/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "images/b.png").symlink_to(folder / "images/a.png")  # as sahi writes pictures
    (folder / "labels/b.txt").mkdir()
    assert open_dataset(folder, "train").annotations.file_names == ["a.png", "b.png"]


# ---- data.yaml -----------------------------------------------------------------------------------


def described(folder: Path, text: str, name: str = "data.yaml") -> Path:
    """Pictures a (train) and b (val) in images/, described by a data.yaml."""
    texts = {name: text, "labels/train/a.txt": DOG, "labels/val/b.txt": DOG}
    return write_tree(folder, texts, ["images/train/a.png", "images/val/b.png"])


@pytest.mark.parametrize(
    "paths",
    [
        "train: images/train\nval: images/val",
        "train: ./images/train/\nval: ./images/val/",
        "train: [images/train]\nval:\n- images/val",
        "path: .\ntrain: images/train\nval: images/val",
        "path: {folder}\ntrain: images/train\nval: images/val",
        "path: {folder}/images\ntrain: train\nval: val",
        "path: images\ntrain: train\nvalidation: val",
        "path: /gone/data\ntrain: images/train\nval: images/val",
        "path: gone\ntrain: images/train\nval: images/val",
        "path:\ntrain: images/train\nval: images/val\ntest:  # none",
        "train: ../images/train\nval: ../images/val",
        "train: ..\\images\\train\nval: images\\val",
        "train: {folder}/images/train\nval: {folder}/images/val",
        "train: /gone/data/images/train\nval: C:\\Users\\x\\data\\images\\val",
    ],
)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_paths(tmp_path: Path, paths: str, given: str) -> None:
    folder = described(tmp_path, paths.replace("{folder}", str(tmp_path)) + "\n" + NAMES)
    data = folder if given == "folder" else folder / "data.yaml"
    for split, name in (("train", "a.png"), ("val", "b.png")):
        dataset = open_dataset(data, split)
        assert dataset.images == folder / "images" / split
        assert dataset.annotations.file_names == [name]
        assert dataset.num_objects == 1


def test_paths_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics' own data.yaml lie elsewhere, and their `path` starts from its `datasets`."""
    described(tmp_path / "datasets" / "pets", NAMES)
    text = "path: pets\ntrain: images/train\nval: images/val\n" + NAMES
    write_tree(tmp_path, {"configurations/pets.yaml": text})
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("configurations/pets.yaml", "val")
    assert dataset.images == tmp_path / "datasets/pets/images/val"
    monkeypatch.chdir(tmp_path / "datasets")
    assert open_dataset("../configurations/pets.yaml", "val").images == dataset.images
    monkeypatch.chdir(tmp_path / "datasets" / "pets")
    assert open_dataset(".", "val").images == dataset.images


def test_a_path_that_may_mean_two_folders_is_told(tmp_path: Path) -> None:
    text = f"train: ../images/train\nval: images/val\n{NAMES}"
    folder = described(tmp_path / "data", text)
    write_tree(tmp_path, {"labels/train/other.txt": ""}, ["images/train/other.png"])
    with pytest.warns(UserWarning, match=r"\.\./images/train is taken for .*; there is .* too"):
        dataset = open_dataset(folder, "train")
    assert dataset.annotations.file_names == ["other.png"]  # as it is written


def test_several_folders(tmp_path: Path) -> None:
    folder = described(tmp_path, f"train: [images/val, images/train]\nval: images/val\n{NAMES}")
    dataset = open_dataset(folder, "train")
    assert dataset.images == folder / "images"
    assert dataset.annotations.file_names == ["train/a.png", "val/b.png"]
    assert dataset.num_objects == 2


def test_a_missing_folder_names_all_that_was_tried(tmp_path: Path) -> None:
    folder = described(tmp_path, f"path: images\ntrain: pictures\nval: val\n{NAMES}")
    with pytest.raises(FileNotFoundError, match="train: no such folder or list") as error:
        open_dataset(folder, "train")
    assert f"{folder}/images/pictures or {folder}/pictures" in str(error.value)
    assert open_dataset(folder, "val").num_objects == 1


@pytest.mark.parametrize(
    ("names", "classes", "ids"),
    [
        ("names: [cat, dog]", ["cat", "dog"], [1, 2]),
        ("names:\n- cat\n- dog", ["cat", "dog"], [1, 2]),
        ("names: {0: cat, 1: dog}", ["cat", "dog"], [1, 2]),
        ("names: {'1': dog, '0': cat}\nnc: 2", ["cat", "dog"], [1, 2]),
        ("names: {0: cat, 1: dog, 7: cow}\nnc: 8", ["cat", "dog", "cow"], [1, 2, 8]),
        ("names: {0: cat, 1: dog, 7: cow}\nnc: 3", ["cat", "dog", "cow"], [1, 2, 8]),
        ("nc: 3", ["0", "1", "2"], [1, 2, 3]),
        ("nc: 2.0\nnames:", ["0", "1"], [1, 2]),
        ("names: [no, yes, 1.50, null]", ["no", "yes", "1.50", "null"], [1, 2, 3, 4]),
        ("names: [cell, cell, other]", ["cell #1", "cell #2", "other"], [1, 2, 3]),
        ("names: &all [cat, dog]\nothers: *all", ["cat", "dog"], [1, 2]),
    ],
)
def test_class_names(tmp_path: Path, names: str, classes: list[str], ids: list[int]) -> None:
    dataset = open_dataset(yolo(tmp_path, DOG, names + "\n"), "train")
    assert dataset.classes == ["background", *classes]
    assert dataset.category_ids == ids
    assert dataset.target(0)["labels"].tolist() == [2]


@pytest.mark.parametrize(("unknown", "told"), [(10, True), (9, False)])
def test_numbers_that_may_count_from_1_are_told(tmp_path: Path, unknown: int, told: bool) -> None:
    """sahi 0.12.8 writes the category ids of a COCO file, which may count from 1."""
    folder = yolo(tmp_path, DOG + unknown * DOG.replace("1", "2", 1))
    with pytest.warns(UserWarning, match="class") as caught:
        open_dataset(folder, "train")
    assert any("may count from 1" in str(one.message) for one in caught) == told


def test_a_class_in_a_hole_is_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 annotation skipped: the class is not in the list"):
        assert open_dataset(yolo(tmp_path, DOG, "names: {0: a, 2: b}\n"), "train").num_objects == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat\n", "not a YAML file"),
        ("\0", "not a YAML file"),
        ("- a\n", "expected keys and values, got list"),
        ("[" * 1000, "not a YAML file"),
        ("train: images\nval: images\nnames: [a, b]\nnc: 3\n", "nc is 3, but there are 2 names"),
        ("train: images\nval: images\nnames: [a]\nnc: many\n", "nc: expected a number of classes"),
        ("train: images\nnames: cat\n", "names: expected a list, or names by number, got 'cat'"),
        ("train: images\nnames: [[a]]\n", "names: expected a name by number"),
        ("train: images\nnames: {a: cat}\n", "names: expected a name by number, got 'a': 'cat'"),
        ("train: images\nnames: {-1: cat}\n", "names: expected a name by number"),
        ("train: {a: b}\nnames: [a]\n", "train: expected a path or a list of paths"),
        ("train: [[images]]\nnames: [a]\n", "train: expected a path or a list of paths"),
        ("train: images\nnames: [a]\nkpt_shape: 17\n", "kpt_shape: expected two numbers, got '17'"),
        ("train: images\nnames: [a]\n" + "#" * 1_000_000, "at most 1000000 bytes"),
        ("val: images\nvalid: images\nnames: [a]\n", "both are the split 'val'"),
    ],
)
def test_broken_descriptions(tmp_path: Path, text: str, message: str) -> None:
    folder = yolo(tmp_path, DOG)
    (folder / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(folder, "train")
    assert "data.yaml" in str(error.value)


def test_objects_in_a_yaml_file_are_not_made(tmp_path: Path) -> None:
    target = tmp_path / "made"
    names = f"names: [cat, !!python/object/apply:os.mkdir ['{target}']]\n"
    with pytest.raises(ValueError, match="expected a name by number"):
        open_dataset(yolo(tmp_path, DOG, names), "train")
    assert not target.exists()


def test_aliases_do_not_grow(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ValueError, match="expected a name by number") as error:
        open_dataset(yolo(tmp_path, DOG, "\n".join([*lines, "names: *a29\n"])), "train")
    assert len(str(error.value)) < 1000


def test_a_name_that_any_folder_has_finds_nothing(tmp_path: Path) -> None:
    """Of an absolute path that does not exist: "images" and a file name alone identify nothing."""
    text = f"train: /gone/train/images\nval: val.txt\n{NAMES}"
    folder = described(tmp_path, text)
    write_tree(folder, {"val.txt": "/gone/val/c.png\n"}, ["c.png"])
    with pytest.raises(FileNotFoundError, match="train: no such folder or list"):
        open_dataset(folder, "train")
    with pytest.raises(FileNotFoundError, match="1 pictures do not exist"):
        open_dataset(folder, "val")


def test_which_yaml_file(tmp_path: Path) -> None:
    text = f"train: images/train\nval: images/val\n{NAMES}"
    folder = described(tmp_path, text, "pets.yaml")
    (folder / "args.yaml").write_text("task: detect\nmodel: yolo11n.yaml\ndata: pets.yaml\n")
    (folder / "yolo11.yaml").write_text("nc: 80\nbackbone:\n- [-1, 1, Conv, [64, 3, 2]]\n")
    (folder / "broken.yml").write_text("names: [")
    (folder / "folder.yaml").mkdir()
    assert open_dataset(folder, "val").num_objects == 1
    (folder / "cars.yml").write_text(text)
    with pytest.raises(ValueError, match=r"one YAML file.* got cars\.yml, pets\.yaml"):
        open_dataset(folder, "val")
    assert open_dataset(folder / "cars.yml", "val").num_objects == 1
    (folder / "data.yml").write_text(text)
    assert open_dataset(folder, "val").num_objects == 1
    with pytest.raises(ValueError, match=r"args\.yaml: expected the keys of a YOLO .*task, model"):
        open_dataset(folder / "args.yaml", "val")


# ---- lists of pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "images/train/a.png",
        "./images/train/a.png",
        "data/images/train/a.png",
        "{folder}/images/train/a.png",
        "/gone/data/images/train/a.png",
        "images\\train\\a.png",
        "C:\\data\\images\\train\\a.png\r",
        "\ufeffimages/train/a.png",
    ],
)
def test_lines_of_a_list(tmp_path: Path, line: str) -> None:
    folder = described(tmp_path, f"train: train.txt\nval: images/val\n{NAMES}")
    (folder / "train.txt").write_text(line.replace("{folder}", str(folder)) + "\n\n")
    dataset = open_dataset(folder, "train")
    assert dataset.images == folder / "images/train"
    assert dataset.annotations.file_names == ["a.png"]
    assert dataset.num_objects == 1


def test_lists_with_gaps_and_repeats(tmp_path: Path) -> None:
    folder = described(tmp_path, f"train: [train.txt, images/val]\nval: val.txt\n{NAMES}")
    listed = "images/train/a.png\nimages/train/x.png\nimages/val/b.png\nnotes.md\n"
    (folder / "train.txt").write_text(listed)
    with pytest.warns(UserWarning, match="pictures") as caught:
        dataset = open_dataset(folder, "train")
    assert dataset.annotations.file_names == ["train/a.png", "val/b.png"]
    messages = " ".join(str(warning.message) for warning in caught)
    assert "train.txt: 2 pictures do not exist (first: line 2: images/train/x.png)" in messages
    assert "train: 1 pictures are named again, and are read once" in messages
    (folder / "val.txt").write_text("x.png\n")
    with pytest.raises(FileNotFoundError, match=r"val\.txt: 1 pictures do not exist"):
        open_dataset(folder, "val")
    (folder / "val.txt").write_text("\n")
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: val: no picture in .*val\.txt"):
        open_dataset(folder, "val")
    (folder / "val.txt").write_bytes(b"\xff\0")
    with pytest.raises(ValueError, match=r"val\.txt: expected text in UTF-8"):
        open_dataset(folder, "val")


def test_a_list_leads_out_only_where_that_is_allowed(tmp_path: Path) -> None:
    folder = described(tmp_path / "data", f"train: train.txt\nval: images/val\n{NAMES}")
    write_tree(tmp_path, {"other/labels/c.txt": DOG}, ["other/images/c.png"])
    for line in ("../other/images/c.png", f"{tmp_path}/other/images/c.png"):
        (folder / "train.txt").write_text(line)
        with pytest.raises(ValueError, match=r"train\.txt, line 1: .* leads out of the data set"):
            open_dataset(folder, "train")
        dataset = open_dataset(folder, "train", files_anywhere=True)
        assert dataset.image_path(0) == tmp_path / "other/images/c.png"
        assert dataset.num_objects == 1


# ---- no description ------------------------------------------------------------------------------


def test_classes_without_a_list_are_numbers(tmp_path: Path) -> None:
    """globox 2.9.0 writes the label files alone. Both splits have the same classes."""
    texts = {
        "labels/train/a.txt": "1 0.15 0.4 0.25 0.6666666666666666\n",
        "labels/val/b.txt": "3 0.1375 0.23333333333333334 0.125 0.2\n",
    }
    write_tree(tmp_path, texts, ["images/train/a.png", "images/val/b.png"])
    for split, label in (("train", 2), ("val", 4)):
        dataset = open_dataset(tmp_path, split)
        assert dataset.classes == ["background", "0", "1", "2", "3"]
        assert dataset.target(0)["labels"].tolist() == [label]


def test_a_list_of_classes_in_the_folder_of_each_split(tmp_path: Path) -> None:
    """Two exports of Label Studio, moved into the folders of splits."""
    names, pictures = "cat\ndog\n", ["train/images/a.png", "val/images/b.png"]
    texts = {f"{split}/classes.txt": names for split in ("train", "val")}
    texts |= {"train/labels/a.txt": DOG, "val/labels/b.txt": DOG}
    write_tree(tmp_path, texts, pictures)
    assert open_dataset(tmp_path, "val").classes == ["background", "cat", "dog"]
    (tmp_path / "val" / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(ValueError, match=r"val/classes\.txt: expected the classes of .*train/cl"):
        open_dataset(tmp_path, "val")


def test_a_huge_class_without_a_list_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"labels/a.txt": "999999999 0.5 0.5 0.1 0.1"}, ["images/a.png"])
    with pytest.raises(ValueError, match="class 999999999, and no list of classes"):
        open_dataset(tmp_path, "default")


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"classes.txt": "cat\n"},
        {"labels/readme.md": ""},
        {"lists/train.txt": "images/a.png"},
        {"x.data": "learning_rate = 3"},
        {"model.yaml": "names: [a]"},
    ],
)
def test_folders_of_something_else(tmp_path: Path, texts: dict[str, str]) -> None:
    write_tree(tmp_path, texts, ["images/a.png"])
    (tmp_path / "weights.data").write_bytes(b"\xff\0\x80")
    with pytest.raises(FileNotFoundError, match="no data set of a known format"):
        find_splits(tmp_path)


def test_a_list_of_classes_with_a_gap_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"classes.txt": "cat\n\ndog\n", "labels/a.txt": DOG}, ["images/a.png"])
    with pytest.raises(ValueError, match=r"classes\.txt: expected the name of a class in each"):
        find_splits(tmp_path)


# ---- beside other readers ------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """One data set in YOLO and in COCO format: 12 pictures, 3 classes."""
    rng = np.random.default_rng(1)
    pictures = [f"{i:02}.png" for i in range(12)]
    texts = {"data.yaml": "train: images/val\nval: images/val\nnames: [cat, dog, cow]\n"}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, name in enumerate(pictures, 1):
        images.append({"id": image_id, "file_name": name, "width": 400, "height": 300})
        rows = []
        for _ in range(rng.integers(0, 5)):
            corner, size = rng.integers(0, 200, 2), rng.integers(8, 100, 2)
            label = int(rng.integers(0, 3))
            bbox = [*corner.tolist(), *size.tolist()]
            x, y, w, h = bbox
            parts = (x + w / 2) / 400, (y + h / 2) / 300, w / 400, h / 300
            rows.append(f"{label} {' '.join(map(repr, parts))}")
            number = len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": image_id, "category_id": label + 1, "bbox": bbox}
            )
        texts[f"labels/val/{name[:-4]}.txt"] = "\n".join(rows)
    yolo = write_tree(tmp_path / "yolo", texts, [f"images/val/{n}" for n in pictures], (400, 300))
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "cow"), 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    texts = {"val.json": json.dumps(content)}
    return yolo, write_tree(tmp_path / "coco", texts, [f"images/{n}" for n in pictures], (400, 300))


def metrics(dataset: DetectionDataset) -> dict[str, float]:
    """Of detections that lie near the objects, with some false ones."""
    rng = np.random.default_rng(2)
    evaluator = CocoEvaluator(dataset.annotations, dataset.category_ids)
    detections = []
    for index in range(len(dataset)):
        target = dataset.target(index)
        boxes = np.concatenate([target["boxes"].numpy(), [[0, 0, 50, 50]]])
        boxes = boxes + rng.normal(0, 4, boxes.shape)
        labels = np.append(target["labels"].numpy(), 1 + index % 3)
        found = {"boxes": boxes, "labels": labels, "scores": rng.random(len(labels))}
        detections.append({name: torch.from_numpy(values) for name, values in found.items()})
    evaluator.update(dataset.image_ids, detections)
    return evaluator.compute().stats


def test_the_metrics_are_those_of_the_same_data_in_coco_format(both: tuple[Path, Path]) -> None:
    yolo, coco = (open_dataset(folder, "val") for folder in both)
    ours, theirs = yolo.annotations, coco.annotations
    np.testing.assert_allclose(ours.boxes_xywh, theirs.boxes_xywh, rtol=0, atol=1e-12)
    assert ours.file_names == theirs.file_names
    assert ours.category_ids == theirs.category_ids
    for column in ("labels", "image_index", "image_sizes", "crowd", "annotation_ids"):
        assert np.array_equal(getattr(ours, column), getattr(theirs, column))
    found, expected = metrics(yolo), metrics(coco)
    assert 0.1 < expected["AP"] < 0.95
    assert found == pytest.approx(expected, abs=1e-12)


def test_boxes_are_those_of_ultralytics(tmp_path: Path) -> None:
    """Its reader of one picture, in float32, on boxes and on segments."""
    utils = pytest.importorskip("ultralytics.data.utils")
    rng = np.random.default_rng(3)
    boxes = np.column_stack([rng.random((50, 2)) * 0.4 + 0.3, rng.random((50, 2)) * 0.5])
    segments = rng.random((50, 8))
    for name, rows in (("boxes", boxes), ("segments", segments)):
        text = "".join(f"{i % 2} {' '.join(map(str, row))}\n" for i, row in enumerate(rows))
        folder = write_tree(
            tmp_path / name,
            {"data.yaml": f"train: images\nval: images\n{NAMES}", "labels/a.txt": text},
        )
        (folder / "images").mkdir()
        turn = Image.Exif()
        turn[0x0112] = 6  # stored lying on its side
        Image.new("RGB", (1000, 700)).save(folder / "images/a.jpg", exif=turn)
        picture = str(folder / "images/a.jpg")
        (label_file,) = utils.img2label_paths([picture])
        _, labels, shape, *_ = utils.verify_image_label(
            (picture, label_file, "", False, 2, 0, 0, False)
        )
        assert shape == (1000, 700)
        annotations = open_dataset(folder, "train").annotations
        assert annotations.image_sizes.tolist() == [[1000, 700]]
        assert (annotations.labels - 1).tolist() == labels[:, 0].tolist()
        x, y, w, h = (labels[:, 1:].astype(float) * [700, 1000, 700, 1000]).T
        theirs = np.column_stack([x - w / 2, y - h / 2, w, h])
        np.testing.assert_allclose(annotations.boxes_xywh, theirs, rtol=0, atol=2e-4)


def test_label_files_are_where_ultralytics_looks(tmp_path: Path) -> None:
    utils = pytest.importorskip("ultralytics.data.utils")
    from fastdet.data.yolo_labels import label_files

    for name in ("images/a.png", "images/images/b.c.jpg", "x/images/y/a.png", "x/a.png"):
        (expected,) = utils.img2label_paths([str(tmp_path / name)])
        assert label_files(tmp_path / name)[0] == Path(expected)


def test_the_cost_of_many_pictures(tmp_path: Path) -> None:
    """1000 pictures take 0.3 s of one core; the limit only guards against a growth by squares."""
    folder = yolo(tmp_path, DOG)
    for i in range(1000):
        os.link(folder / "images/a.png", folder / f"images/{i}.png")
        os.link(folder / "labels/a.txt", folder / f"labels/{i}.txt")
    start = time.process_time()
    assert open_dataset(folder, "train").num_objects == 1001
    assert time.process_time() - start < 10
