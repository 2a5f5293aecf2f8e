# SPDX-License-Identifier: BSD-3-Clause
"""Folders with COCO files as real tools write them: found, with their pictures."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from fastdet.data import DetectionDataset, open_dataset
from fastdet.data.formats import FORMATS, find_splits
from fastdet.data.formats.coco import is_coco_file
from fastdet.data.formats.split import Split
from tests.data.formats.trees import write_tree

CATEGORIES = '"categories":[{"id":1,"name":"cat","supercategory":""},{"id":2,"name":"dog"}]'


def coco(*names: str) -> str:
    """A file of images of 40 x 30; the first one has a dog."""
    images = [
        {"id": i, "width": 40, "height": 30, "file_name": name} for i, name in enumerate(names)
    ]
    dog = {"id": 1, "image_id": 0, "category_id": 2, "area": 200, "bbox": [1, 2, 10, 20]}
    return f'{{"images":{json.dumps(images)},"annotations":[{json.dumps(dog)}],{CATEGORIES}}}'


# As COCO itself has them: the lists of images and annotations are not in the file's first lines.
INFO = '"info":{"description":"COCO 2017 Dataset","year":2017},"licenses":[{"id":1,"name":"CC"}],'

# Layout: its files, the pictures, and the splits with the image folder of each.
LAYOUTS = {
    "fastdet": (
        {"train.json": coco("a.png"), "val.json": coco("b.png")},
        ["images/a.png", "images/b.png"],
        {"train": "images", "val": "images"},
    ),
    "folders of pictures below images": (
        {"train.json": coco("a.png"), "val.json": coco("b.png")},
        ["images/train/a.png", "images/val/b.png"],
        {"train": "images/train", "val": "images/val"},
    ),
    "a folder of pictures for each split": (
        {"train.json": coco("a.png"), "validation.json": coco("b.png")},
        ["train/a.png", "validation/b.png"],
        {"train": "train", "val": "validation"},
    ),
    "COCO 2017": (
        {
            "annotations/instances_train2017.json": coco("a.png").replace("{", "{" + INFO, 1),
            "annotations/instances_val2017.json": coco("b.png").replace("{", "{" + INFO, 1),
            "annotations/captions_val2017.json": coco("b.png"),
            "annotations/person_keypoints_val2017.json": coco("b.png"),
        },
        ["train2017/a.png", "val2017/b.png"],
        {"train": "train2017", "val": "val2017"},
    ),
    "COCO 2014": (
        {"annotations/instances_train2014.json": coco("COCO_train2014_000000000009.png")},
        ["train2014/COCO_train2014_000000000009.png"],
        {"train": "train2014"},
    ),
    "no year": (
        {"annotations/instances_train.json": coco("a.png")},
        ["train/a.png"],
        {"train": "train"},
    ),
    "annotations by the split alone": (
        {"annotations/train.json": coco("a.png"), "annotations/valid.json": coco("b.png")},
        ["images/a.png", "images/b.png"],
        {"train": "images", "val": "images"},
    ),
    # Roboflow's export in the format COCO.
    "Roboflow": (
        {
            "train/_annotations.coco.json": coco("a_png.rf.0c1d.png"),
            "valid/_annotations.coco.json": coco("b_png.rf.9f2e.png"),
            "test/_annotations.coco.json": coco("c_png.rf.77aa.png"),
            "README.roboflow.txt": "",
        },
        [
            "train/a_png.rf.0c1d.png",
            "valid/b_png.rf.9f2e.png",
            "test/c_png.rf.77aa.png",
        ],
        {"train": "train", "val": "valid", "test": "test"},
    ),
    # Datumaro 1.13.12, format "coco".
    "Datumaro": (
        {
            "annotations/instances_train.json": coco("a.png", "sub/b.png"),
            "annotations/instances_val.json": coco("c.png"),
            "annotations/image_info_train.json": '{"images":[],"categories":[],"annotations":[]}',
            "annotations/panoptic_val.json": coco("c.png"),
            "annotations/stuff_val.json": coco("c.png"),
        },
        ["images/train/a.png", "images/train/sub/b.png", "images/val/c.png"],
        {"train": "images/train", "val": "images/val"},
    ),
    # CVAT's export "COCO 1.0" of a task without subsets, with images.
    "CVAT": (
        {"annotations/instances_default.json": coco("a.png", "b.png")},
        ["images/default/a.png", "images/default/b.png"],
        {"default": "images/default"},
    ),
    "CVAT, flat": (
        {"annotations/instances_default.json": coco("a.png", "b.png")},
        ["images/a.png", "images/b.png"],
        {"default": "images"},
    ),
    # fiftyone 1.22.1, COCODetectionDatasetExporter.
    "fiftyone": (
        {"labels.json": coco("a.png").replace("{", "{" + INFO, 1)},
        ["data/a.png"],
        {"labels": "data"},
    ),
    "fiftyone, a folder for each split": (
        {"train/labels.json": coco("a.png"), "validation/labels.json": coco("b.png")},
        ["train/data/a.png", "validation/data/b.png"],
        {"train": "train/data", "val": "validation/data"},
    ),
    # supervision 0.31.2, as_coco("images", "annotations.json").
    "supervision": (
        {"annotations.json": coco("a.png")},
        ["images/a.png"],
        {"annotations": "images"},
    ),
    # Label Studio (label-studio-sdk 2.1.2) with download_resources: names with the folder.
    "Label Studio, with images": (
        {"result.json": coco("images/abc-a.png")},
        ["images/abc-a.png"],
        {"result": "."},
    ),
    # labelme2coco 0.2.6, convert("lm", "out", train_split_rate=0.6).
    "labelme2coco": (
        {"out/train.json": coco("lm/a.png"), "out/val.json": coco("lm/sub/c.png")},
        ["lm/a.png", "lm/sub/c.png"],
        {"train": "..", "val": ".."},
    ),
    # sahi 0.12.8, slice_coco: the file lies beside the slices.
    "sahi": (
        {"sl_coco.json": coco("a_0_0_0_20_16.png")},
        ["a_0_0_0_20_16.png"],
        {"sl_coco": "."},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    texts, pictures, expected = LAYOUTS[layout]
    write_tree(tmp_path, texts, pictures)
    folder = tmp_path / "out" if layout == "labelme2coco" else tmp_path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = find_splits(folder)
        assert list(splits) == list(expected)
        for name, images in expected.items():
            dataset = open_dataset(folder, name)
            assert dataset.images.resolve() == (folder / images).resolve()
            assert dataset.classes == ["background", "cat", "dog"]
            for index in range(len(dataset)):
                image, _ = dataset[index]
                assert tuple(image.shape) == (3, 30, 40)
            assert dataset[0][1]["boxes"].tolist() == [[1, 2, 11, 22]]
            by_file = find_splits(splits[name].path)
            assert [split.path for split in by_file.values()] == [splits[name].path]
            by_file_annotations = open_dataset(splits[name].path, *by_file).annotations
            assert by_file_annotations.images == dataset.images


def test_valid_is_another_name_of_val(tmp_path: Path) -> None:
    write_tree(tmp_path, {"valid.json": coco("a.png")}, ["images/a.png"])
    for name in ("val", "valid", "validation"):
        assert len(open_dataset(tmp_path, name)) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("val.json", "validation.json"),
        ("annotations/instances_val2014.json", "annotations/instances_val2017.json"),
        ("train.json", "annotations/instances_train.json"),
        ("val.json", "valid/_annotations.coco.json"),
    ],
)
def test_two_files_of_one_split_are_refused(tmp_path: Path, first: str, second: str) -> None:
    write_tree(tmp_path, {first: coco("a.png"), second: coco("a.png")}, ["images/a.png"])
    with pytest.raises(ValueError, match=r"both are the split '(val|train)'") as error:
        find_splits(tmp_path)
    assert str(tmp_path / first) in str(error.value)
    assert str(tmp_path / second) in str(error.value)
    assert len(find_splits(tmp_path / first)) == 1


# Files of other tools that lie about in data folders.
OTHER_FILES = {
    "a COCO result": '[{"image_id":1,"category_id":1,"bbox":[1,2,3,4],"score":0.5}]',
    "images.json of fastdet predict": '{"images":[{"id":1,"file_name":"a.png"}],"categories":[]}',
    "package.json": '{"name":"annotations","dependencies":{"images":"1.0"}}',
    "LabelMe": '{"version":"5.5.0","flags":{},"shapes":[{"label":"images"}],"imagePath":"a.png"}',
    "notes.json of Label Studio": '{"categories":[{"id":0,"name":"cat"}],"info":{"year":2026}}',
    "not JSON": "annotations",
    "empty": "",
    "binary": "\0\1\2",
}


@pytest.mark.parametrize("content", OTHER_FILES.values(), ids=list(OTHER_FILES))
def test_other_json_files_are_no_splits(tmp_path: Path, content: str) -> None:
    write_tree(tmp_path, {"train.json": coco("a.png"), "other.json": content}, ["images/a.png"])
    assert not is_coco_file(tmp_path / "other.json")
    assert list(find_splits(tmp_path)) == ["train"]


def test_a_folder_named_like_a_file_is_no_split(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.json": coco("a.png"), "val.json/x": ""}, ["images/a.png"])
    assert list(find_splits(tmp_path)) == ["train"]


def test_a_broken_file_with_a_splits_name_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.json": "{", "val.json": coco("a.png")}, ["images/a.png"])
    with pytest.raises(ValueError, match=r"train\.json: not a JSON file"):
        open_dataset(tmp_path, "train")
    (tmp_path / "whole.json").write_text("[]")
    with pytest.raises(ValueError, match=r"whole\.json: a COCO file is a JSON object"):
        open_dataset(tmp_path / "whole.json", "train")


def test_pictures_are_taken_from_the_folder_that_has_most_of_them(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    pictures = ["images/a.png", *(f"images/val/{name}" for name in names)]
    write_tree(tmp_path, {"val.json": coco(*names)}, pictures)
    assert open_dataset(tmp_path, "val").images == tmp_path / "images" / "val"


def test_missing_pictures_are_one_error_that_names_all_places(tmp_path: Path) -> None:
    write_tree(tmp_path, {"val.json": coco("a.png", "b.png")}, ["images/other.png"])
    with pytest.raises(FileNotFoundError, match=r"a\.png, nor any other of the first 2") as error:
        open_dataset(tmp_path, "val")
    for place in ("images", "images/val", "val", "data"):
        assert str(tmp_path / place) in str(error.value)
    shutil.rmtree(tmp_path / "images")  # annotations alone may be read
    assert open_dataset(tmp_path, "val").annotations.file_names == ["a.png", "b.png"]


# result.json of Label Studio (label-studio-sdk 2.1.2), as it writes slashes and sizes.
LABEL_STUDIO = r"""{
  "images": [
    {"width": 40, "height": 30, "id": 0, "file_name": "..\/..\/upload\/1\/abc-a.png"},
    {"width": null, "height": null, "id": 1, "file_name": "..\/..\/upload\/1\/def-b.png"}
  ],
  "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
  "annotations": [
    {"id": 0, "image_id": 0, "category_id": 1, "segmentation": [],
     "bbox": [1.0, 2.0, 10.0, 19.999999999999996], "ignore": 0, "iscrowd": 0, "area": 199.9}
  ],
  "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"}
}"""


def test_label_studios_paths_are_resolved_by_their_last_part(tmp_path: Path) -> None:
    pictures = ["images/abc-a.png", "images/def-b.png"]
    write_tree(tmp_path, {"result.json": LABEL_STUDIO}, pictures)
    annotations = open_dataset(tmp_path, "result").annotations
    assert annotations.file_names == ["abc-a.png", "def-b.png"]
    assert annotations.image_sizes.tolist() == [[30, 40], [30, 40]]
    (tmp_path / "images/def-b.png").unlink()
    with pytest.raises(ValueError, match=r"image id 1: file_name '\.\./\.\./upload/1/def-b\.png'"):
        open_dataset(tmp_path, "result")


def test_a_last_part_that_two_images_have_resolves_nothing(tmp_path: Path) -> None:
    texts = {"val.json": coco("../1/a.png", "../2/a.png")}
    write_tree(tmp_path / "data", texts, ["images/a.png"])
    with pytest.raises(ValueError, match=r"image id 1: file_name '\.\./2/a\.png' leads out"):
        open_dataset(tmp_path / "data", "val")
    write_tree(tmp_path / "data", {}, ["1/a.png", "2/a.png"])
    dataset = open_dataset(tmp_path / "data", "val", files_anywhere=True)
    assert dataset.image_path(1).resolve() == tmp_path / "data" / "2" / "a.png"


# ---- one split, which is divided -----------------------------------------------------------------


def whole(tmp_path: Path, count: int = 20) -> Path:
    names = [f"{i}.png" for i in range(count)]
    return write_tree(tmp_path, {"labels.json": coco(*names)}, [f"data/{name}" for name in names])


def test_data_without_splits_is_divided(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    with pytest.warns(UserWarning, match="16 for train and 4 for val; `fastdet split`") as caught:
        train, val = (open_dataset(folder, split) for split in ("train", "val"))
    assert len({str(warning.message) for warning in caught}) == 1
    assert (len(train), len(val)) == (16, 4)
    assert sorted(train.image_ids + val.image_ids) == list(range(20))
    assert len(open_dataset(folder, "labels")) == 20
    with pytest.raises(FileNotFoundError, match=r"no split 'test' in .*: it has labels"):
        open_dataset(folder, "test")
    by_file = open_dataset(folder / "labels.json", "valid")
    assert by_file.image_ids == val.image_ids


def test_the_division_depends_on_nothing_but_the_names(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    names = open_dataset(folder, "val").annotations.file_names
    content = json.loads((folder / "labels.json").read_text())
    content["images"].reverse()
    (folder / "labels.json").write_text(json.dumps(content))
    assert sorted(open_dataset(folder, "val").annotations.file_names) == sorted(names)


def test_with_masks_the_division_is_the_same(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    content = json.loads((folder / "labels.json").read_text())
    content["annotations"] = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1 + i % 2,
            "bbox": [1, 1, 9, 9],
            "segmentation": [] if i % 2 else [[1, 1, 10, 1, 10, 10]],
        }
        for i in range(20)
    ]
    (folder / "labels.json").write_text(json.dumps(content))
    boxes = open_dataset(folder, "val")
    with pytest.warns(UserWarning, match="10 annotations skipped: no segmentation"):
        masks = open_dataset(folder, "val", masks=True)
    assert masks.image_ids == boxes.image_ids
    assert {1, 2} == set(np.concatenate([boxes.target(i)["labels"] for i in range(4)]).tolist())


def test_a_train_split_alone_gives_no_val(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.json": coco("a.png")}, ["images/a.png"])
    with pytest.raises(FileNotFoundError, match=r"no split 'val' .* it has train; `fastdet split`"):
        open_dataset(tmp_path, "val")


# ---- finding a format ----------------------------------------------------------------------------


def test_a_format_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(path: Path) -> dict[str, Split]:
        return {"train": Split("other", path, FORMATS["coco"](path)["val"].read)}

    write_tree(tmp_path, {"train.json": coco("a.png"), "val.json": coco("b.png")})
    monkeypatch.setitem(FORMATS, "other", other)
    with pytest.warns(UserWarning, match="read as coco; it is also a data set in the format other"):
        assert find_splits(tmp_path)["train"].format == "coco"
    chosen: DetectionDataset = open_dataset(tmp_path, "train", format="other")
    assert chosen.annotations.file_names == ["b.png"]
    with pytest.raises(ValueError, match=r"format: expected coco or yolo.*, got kitti"):
        find_splits(tmp_path, "kitti")
    with pytest.raises(FileNotFoundError, match="no data set in the format yolo"):
        find_splits(tmp_path, "yolo")


def test_no_format(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set of a known format: coco, yolo"):
        find_splits(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone: no such folder or file"):
        find_splits(tmp_path / "gone")
