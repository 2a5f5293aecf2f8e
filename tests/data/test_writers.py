# SPDX-License-Identifier: BSD-3-Clause
"""One data set in every format gives identical boxes; what is written is whole or not there."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import get_args
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from PIL import Image

from fastdet.data import Annotations, open_dataset, write_shapes
from fastdet.data.coco_file import read_coco_file
from fastdet.data.formats import find_splits
from fastdet.data.segmentations import decode, read_segmentation
from fastdet.data.writers import WRITERS, pictures, write_dataset
from fastdet.training import options
from fastdet.training.data_module import DetectionDataModule
from tests.data_sets import data_sets

COLUMNS = ("annotation_ids", "image_index", "labels", "boxes_xywh", "areas", "crowd")
NO_CROWDS = "crowd regions of train left out, which YOLO does not have"
IMAGES = [
    {"id": 5, "file_name": "b.png", "width": 40, "height": 30},
    {"id": 7, "file_name": "empty.png", "width": 20, "height": 20},
    {"id": 2, "file_name": "sub/a é.jpg", "width": 30, "height": 40},  # stored as 40 x 30
]
CATEGORIES = [
    {"id": 9, "name": "d<o>g & co"},
    {"id": 3, "name": 'Жук "2"'},
    {"id": 4, "name": "without objects"},
]


def triangle(x: float, y: float) -> list[list[float]]:
    return [[x, y, x + 6, y, x, y + 5]]


def annotation(identity: int, image: int, box: list[float], **more) -> dict:
    x, y, width, height = box
    shape = {"area": width * height, "segmentation": triangle(x, y)}
    return {"id": identity, "image_id": image, "category_id": 9, "bbox": box, **shape, **more}


ANNOTATIONS = [
    annotation(3, 5, [0.1, 0.2, 10.3, 20.7]),
    annotation(10, 2, [1 / 3, 2, 20, 20], category_id=3),
    annotation(4, 5, [0, 0, 40, 30], category_id=3),
    annotation(12, 2, [3, 3, 9, 9], iscrowd=1),
    annotation(13, 5, [-5, 2, 100, 3.5]),
    annotation(14, 2, [7, 7, 6, 5]),
]


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set of two splits: a turned picture, an empty one, a crowd, boxes that reach out."""
    root = tmp_path / "data"
    (root / "images" / "sub").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), (9, 99, 199)).save(root / "images" / "b.png")
    Image.new("RGB", (20, 20)).save(root / "images" / "empty.png")
    Image.new("RGB", (40, 30)).save(root / "images" / "sub" / "a é.jpg", exif=exif)
    Image.new("RGB", (8, 9)).save(root / "images" / "v.png")
    train = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}
    val = {
        "images": [{"id": 5, "file_name": "v.png", "width": 8, "height": 9}],
        "annotations": [annotation(1, 5, [1, 2, 3, 4])],
        "categories": CATEGORIES,
    }
    (root / "train.json").write_text(json.dumps(train))
    (root / "val.json").write_text(json.dumps(val))
    return root


def read(folder: Path, masks: bool = False) -> dict[str, Annotations]:
    return {
        name: split.read(masks=masks, exif="apply", files_anywhere=False)
        for name, split in find_splits(folder).items()
    }


def said(split: Annotations, crowd: bool = True, exact: bool = True) -> dict[str, tuple]:
    """By file name the size of a picture and its objects in their order, classes by name."""
    objects: dict[str, tuple] = {
        name: (tuple(size), [])
        for name, size in zip(split.file_names, split.image_sizes.tolist(), strict=True)
    }
    boxes = split.boxes_xywh if exact else split.boxes_xywh.astype(np.float32)
    for row, index in enumerate(split.image_index):
        if crowd or not split.crowd[row]:
            name = split.names[split.labels[row] - 1]
            entry = (name, tuple(boxes[row].tolist()), bool(split.crowd[row]))
            objects[split.file_names[index]][1].append(entry)
    return objects


@pytest.mark.parametrize("format", WRITERS)
def test_a_data_set_is_read_back(data, tmp_path, format) -> None:
    """To the bit in COCO and VOC; in YOLO without crowds, and equal in float32."""
    before = read(data)
    notes = write_dataset(before, tmp_path / "out", format)
    after = read(tmp_path / "out")
    is_yolo = format == "yolo"
    assert notes == ([f"{NO_CROWDS}: 1"] if is_yolo else [])
    assert list(after) == list(before) == ["train", "val"]
    for name, split in before.items():
        assert said(after[name], not is_yolo, not is_yolo) == said(split, not is_yolo, not is_yolo)
        assert set(after[name].names) == set(split.names)
    for name in before:
        one, other = open_dataset(data, name), open_dataset(tmp_path / "out", name)
        names = {file: index for index, file in enumerate(other.annotations.file_names)}
        for index, file in enumerate(one.annotations.file_names):
            image, target = one[index]
            found, found_target = other[names[file]]
            assert image.equal(found)
            assert target["boxes"].equal(found_target["boxes"])


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("folder", data_sets("coco_by", "bccd"))
def test_real_data_is_read_back(folder, tmp_path, format) -> None:
    before = read(folder)
    write_dataset(before, tmp_path / "out", format, "link")
    after = read(tmp_path / "out")
    exact = format != "yolo"
    for name, split in before.items():
        assert said(after[name], exact, exact) == said(split, exact, exact)


def test_coco_keeps_all(data, tmp_path) -> None:
    before = read(data, masks=True)["train"]
    write_dataset({"train": before}, tmp_path / "out", "coco")
    after = read(tmp_path / "out", masks=True)["train"]
    for name in ("image_ids", "file_names", "category_ids", "names", "masks", "has_ids"):
        assert getattr(after, name) == getattr(before, name)
    for name in ("image_sizes", "annotation_ids", "image_index", "labels", "areas", "crowd"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
    assert np.array_equal(after.boxes_xywh, before.boxes_xywh)


def test_yolo_as_ultralytics_reads_it(data, tmp_path) -> None:
    """Centre and sides as fractions of the picture as it is displayed."""
    before = read(data)
    write_dataset(before, tmp_path / "out", "yolo")
    assert (tmp_path / "out" / "data.yaml").read_text() == (
        "train: images/train\nval: images/val\nnames:\n"
        '  0: "\\u0416\\u0443\\u043a \\"2\\""\n  1: "without objects"\n  2: "d<o>g & co"\n'
    )
    labels = tmp_path / "out" / "labels" / "train"
    assert (labels / "empty.txt").read_text() == ""
    rows = [line.split() for line in (labels / "sub" / "a é.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == ["0", "2"]
    for row, (x, y, w, h) in zip(rows, ([1 / 3, 2, 20, 20], [7, 7, 6, 5]), strict=True):
        cx, cy, width, height = (float(value) for value in row[1:])
        found = [30 * (cx - width / 2), 40 * (cy - height / 2), 30 * width, 40 * height]
        assert found == pytest.approx([x, y, w, h], abs=1e-9)
    assert (tmp_path / "out" / "images" / "train" / "sub" / "a é.jpg").is_file()


def test_yolo_outlines_are_the_masks(data, tmp_path) -> None:
    before = read(data, masks=True)["train"]
    notes = write_dataset({"train": before}, tmp_path / "out", "yolo")
    assert notes == [
        f"{NO_CROWDS}: 1",
        "boxes of train replaced by those around their masks, as a row of YOLO has one of both: 4",
        "objects of train left out, whose masks have no pixel: 1",
    ]
    (line, *_) = (tmp_path / "out" / "labels" / "train" / "b.txt").read_text().splitlines()
    number, *values = line.split()
    assert number == "2"
    scale = np.tile([40, 30], len(values) // 2)
    points = (np.array(values, float) * scale).tolist()
    assert before.masks is not None
    found = decode([read_segmentation([points], 30, 40)], 30, 40)
    assert np.array_equal(found[0], decode(before.masks[:1], 30, 40)[0])


def test_yolo_outlines_are_read_back(data, tmp_path) -> None:
    before = read(data, masks=True)["val"]
    write_dataset({"val": before}, tmp_path / "out", "yolo")
    after = read(tmp_path / "out", masks=True)["val"]
    assert after.masks == before.masks


def test_voc_counts_masks(data, tmp_path) -> None:
    before = read(data, masks=True)["train"]
    notes = write_dataset({"train": before}, tmp_path / "out", "voc")
    assert notes == ["masks of train left out, as the XML files of VOC have boxes alone: 6"]
    text = (tmp_path / "out" / "Annotations" / "sub" / "a é.xml").read_text()
    assert '<name>Жук "2"</name>' in text
    assert "<xmin>1.3333333333333333</xmin>" in text
    assert (tmp_path / "out" / "ImageSets" / "Main" / "train.txt").read_text() == (
        "b\nempty\nsub/a é\n"
    )


def cvat_of(splits: dict[str, Annotations], folder: Path) -> None:
    """The data set as CVAT writes it, but with all digits."""
    folder.mkdir()
    for name, split in splits.items():
        assert split.images is not None
        shutil.copytree(split.images, folder / "images", dirs_exist_ok=True)
        labels = "".join(f"<label><name>{_xml(label)}</name></label>" for label in split.names)
        images = ""
        for index, file in enumerate(split.file_names):
            height, width = split.image_sizes[index].tolist()
            shapes = ""
            for row in np.flatnonzero(split.image_index == index):
                x, y, w, h = split.boxes_xywh[row].tolist()
                label = quoteattr(split.names[split.labels[row] - 1])
                shapes += f'<box label={label} xtl="{x!r}" ytl="{y!r}" xbr="{x + w!r}" '
                shapes += f'ybr="{y + h!r}" occluded="0" z_order="0"></box>'
            size = f'width="{width}" height="{height}"'
            images += f'<image id="{index}" name={quoteattr(file)} {size}>{shapes}</image>'
        text = f"<annotations><meta><task><labels>{labels}</labels></task></meta>{images}"
        (folder / f"{name}.xml").write_text(f"{text}</annotations>", encoding="utf-8")


def labelme_of(splits: dict[str, Annotations], folder: Path) -> None:
    for name, split in splits.items():
        for index, file in enumerate(split.file_names):
            assert split.images is not None
            target = folder / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(split.images / file, target)
            height, width = split.image_sizes[index].tolist()
            shapes = []
            for row in np.flatnonzero(split.image_index == index):
                x, y, w, h = split.boxes_xywh[row].tolist()
                label = split.names[split.labels[row] - 1]
                points = [[x + w, y + h], [x, y]]
                shapes.append({"label": label, "points": points, "shape_type": "rectangle"})
            content = {"version": "6.3.1", "shapes": shapes, "imagePath": target.name}
            content |= {"imageHeight": height, "imageWidth": width, "imageData": None}
            target.with_suffix(".json").write_text(json.dumps(content))


def _xml(text: str) -> str:
    return quoteattr(text, {'"': "&quot;"})[1:-1]


@pytest.mark.parametrize("write", [cvat_of, labelme_of])
@pytest.mark.parametrize("folder", [None, *data_sets("coco_by")])
def test_cvat_and_labelme_give_the_same_boxes(data, tmp_path, write, folder) -> None:
    """Equal in float32: both store the far corner, and a width is a difference."""
    before = read(folder or data)
    write(before, tmp_path / "out")
    after = read(tmp_path / "out")
    assert list(after) == list(before)
    for name, split in before.items():
        without_crowds = replace(split, crowd=np.zeros_like(split.crowd))
        found, expected = after[name].boxes_xywh, split.boxes_xywh
        assert said(after[name], exact=False).keys() == said(split).keys()
        assert {
            file: [entry[0] for entry in entries[1]] for file, entries in said(after[name]).items()
        } == {file: [entry[0] for entry in entries[1]] for file, entries in said(split).items()}
        order = np.argsort([split.file_names[index] for index in split.image_index], kind="stable")
        assert np.abs(found - expected[order]).max() < 1e-9
        assert said(after[name], exact=False) == said(without_crowds, exact=False)


def voc_of(splits: dict[str, Annotations], folder: Path) -> None:
    write_dataset(splits, folder, "voc")


@pytest.mark.parametrize("format", ["voc", "yolo"])
@pytest.mark.parametrize("folder", data_sets("coco_by"))
def test_supervision_reads_the_same_boxes(folder, tmp_path, format) -> None:
    supervision = pytest.importorskip("supervision")
    splits = read(folder)
    write_dataset(splits, tmp_path, format, "link")
    for name, split in splits.items():
        if format == "voc":
            places = [tmp_path / "JPEGImages", tmp_path / "Annotations"]
            data = supervision.DetectionDataset.from_pascal_voc(*map(str, places))
        else:
            places = [
                tmp_path / "images" / name,
                tmp_path / "labels" / name,
                tmp_path / "data.yaml",
            ]
            data = supervision.DetectionDataset.from_yolo(*map(str, places))
        found = {Path(path).name: objects for path, _, objects in data}
        for index, file in enumerate(split.file_names):
            keep = (split.image_index == index) & ~(split.crowd & (format == "yolo"))
            boxes = split.boxes_xywh[keep]
            corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
            assert found[file].xyxy.reshape(-1, 4) == pytest.approx(corners, abs=1e-3)
            names = [split.names[label - 1] for label in split.labels[keep]]
            assert [data.classes[number] for number in found[file].class_id] == names


@pytest.mark.parametrize("write", [cvat_of, labelme_of, voc_of])
def test_a_training_reads_every_format(tmp_path, write) -> None:
    """Both splits have the same classes, though there are circles in one alone."""
    splits = read(write_shapes(tmp_path / "data", train=2, val=1, size=32))
    val = splits["val"]
    kept = np.array(val.names)[val.labels - 1] != "circle"
    splits["val"] = replace(val, **{name: getattr(val, name)[kept] for name in COLUMNS})
    write(splits, tmp_path / "out")
    module = DetectionDataModule(tmp_path / "out", 2, 0)
    images, targets = next(iter(module.train_dataloader()))
    assert images[0].shape == (3, 32, 32)
    assert sum(len(target["boxes"]) for target in targets) > 0
    assert module.validation.num_objects == kept.sum()


@pytest.mark.parametrize("images", ["copy", "link", "none"])
def test_pictures(data, tmp_path, images) -> None:
    write_dataset(read(data), tmp_path / "out", "coco", images)
    new, old = tmp_path / "out" / "images" / "b.png", data / "images" / "b.png"
    assert new.exists() == (images != "none")
    assert (tmp_path / "out" / "images").exists() == (images != "none")
    if images != "none":
        assert new.read_bytes() == old.read_bytes()
        assert new.samefile(old) == (images == "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_links_where_file_systems_differ(data, tmp_path, monkeypatch) -> None:
    def refuse(*_) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_dataset(read(data), tmp_path / "out", "voc", "link")
    assert (tmp_path / "out" / "JPEGImages" / "b.png").is_symlink()
    assert open_dataset(tmp_path / "out", "val")[0][0].shape == (3, 9, 8)


@pytest.mark.parametrize("format", WRITERS)
def test_pictures_of_one_name_stay_apart(tmp_path, format) -> None:
    """As in Roboflow's train/a.png and valid/a.png; a picture in two splits is one file."""
    splits = {}
    for name, colour in (("train", 50), ("val", 200)):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (40, 30), (colour,) * 3).save(folder / "a.png")
        content = {"images": [{**IMAGES[0], "file_name": "a.png"}], "categories": CATEGORIES}
        content["annotations"] = [annotation(1, 5, [1, 2, 3, 4])]
        (folder / "x.json").write_text(json.dumps(content))
        splits[name] = read_coco_file(folder / "x.json", images=folder)
    write_dataset(splits, tmp_path / "out", format)
    found = sorted((tmp_path / "out").rglob("*.png"))
    assert len(found) == 2
    assert {Image.open(path).getpixel((0, 0)) for path in found} == {(50,) * 3, (200,) * 3}
    assert [path.parent.name for path in found] == ["train", "val"]

    again = {"train": splits["train"], "trainval": splits["train"]}
    write_dataset(again, tmp_path / "again", format)
    assert len(sorted((tmp_path / "again").rglob("*.png"))) == (2 if format == "yolo" else 1)
    moved = replace(splits["train"], boxes_xywh=splits["train"].boxes_xywh + 1)
    write_dataset({"train": splits["train"], "other": moved}, tmp_path / "moved", format)
    if format == "voc":
        assert read(tmp_path / "moved")["other"].boxes_xywh.tolist() == [[2, 3, 4, 5]]
        assert read(tmp_path / "moved")["train"].boxes_xywh.tolist() == [[1, 2, 3, 4]]


def changed(split: Annotations, **changes) -> dict[str, Annotations]:
    return {"train": replace(split, **changes)}


@pytest.mark.parametrize(
    ("format", "changes", "match"),
    [
        ("coco", {"file_names": ["../b.png", "c", "d"]}, r"'\.\./b\.png' leads out of the image"),
        ("coco", {"file_names": ["/b.png", "c", "d"]}, r"'/b\.png' leads out of the image folder"),
        (
            "coco",
            {"file_names": ["a\0b/", "c", "d"]},
            r"a name that a file can have, got 'a\\x00b/'",
        ),
        (
            "coco",
            {"file_names": ["\ud800/", "c", "d"]},
            r"a name that a file can have, got '\\ud800",
        ),
        ("yolo", {"file_names": ["b.png", "b.jpg", "d"]}, "'b.png' and 'b.jpg' would share"),
        ("voc", {"file_names": ["b.png", "b.png", "d"]}, "'b.png' and 'b.png' would share"),
        ("voc", {"names": ["a", "b\n", "c"]}, r"expected class names of .*, got 'b\\n'"),
        ("voc", {"names": ["a", " b", "c"]}, "expected class names of"),
        ("voc", {"names": ["a", "b\0", "c"]}, "expected class names of"),
        ("coco", {"images": None}, "expected annotations with an image folder"),
        ("yolo", {"image_sizes": np.array([[30, 41], [20, 20], [40, 30]])}, "states, 41x30, got"),
        ("yolo", {"image_sizes": np.array([[30, 40], [20, 20], [30, 40]])}, "got 30x40 as it is"),
        ("png", {}, "format: expected coco, yolo, voc, got 'png'"),
    ],
)
def test_what_no_format_can_hold_is_one_error(data, tmp_path, format, changes, match) -> None:
    split = read(data)["train"]
    for name in changes.get("file_names", []):
        if "/" not in name:
            Image.new("RGB", (40, 30)).save(data / "images" / name, "PNG")
    with pytest.raises(ValueError, match=match) as error:
        write_dataset(changed(split, **changes), tmp_path / "out", format)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # nothing is left


def test_other_mistakes(data, tmp_path) -> None:
    splits = read(data)
    with pytest.raises(ValueError, match="images: expected copy, link, none, got 'move'"):
        write_dataset(splits, tmp_path / "out", "coco", "move")  # pyright: ignore
    with pytest.raises(ValueError, match="expected at least one split, got none"):
        write_dataset({}, tmp_path / "out", "coco")
    with pytest.raises(ValueError, match=r"expected the name of a split, got '\.\./x'"):
        write_dataset({"../x": splits["val"]}, tmp_path / "out", "coco")
    (data / "images" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such image file \(1 of 4 are missing"):
        write_dataset(splits, tmp_path / "out", "coco")
    write_dataset(splits, tmp_path / "out", "yolo", "none")
    assert get_args(options.Images) == get_args(pictures.Images)
    assert list(get_args(options.DataFormat)) == list(WRITERS)


def test_nothing_is_overwritten(data, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_dataset(read(data), out, "coco")  # an empty folder is no loss
    before = sorted(out.rglob("*"))
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        write_dataset(read(data), out, "voc")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        write_dataset(read(data), out / "train.json", "voc")
    assert sorted(out.rglob("*")) == before


def test_a_full_disk_leaves_nothing_and_is_named(data, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(WRITERS, "coco", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/full/out'"):
        write_dataset(read(data), tmp_path / "full" / "out", "coco")
    assert list((tmp_path / "full").iterdir()) == []


def test_a_data_set_opened_for_training_is_written_whole(data, tmp_path) -> None:
    dataset = open_dataset(data, "train", keep_empty=False)
    write_dataset({"train": dataset}, tmp_path / "out", "coco")
    assert len(read(tmp_path / "out")["train"].image_ids) == 3


@pytest.mark.parametrize("format", WRITERS)
def test_an_error_in_the_middle_leaves_nothing(data, tmp_path, monkeypatch, format) -> None:
    def stop(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(WRITERS, format, stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(read(data), tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_killed_process_leaves_no_data_set(data, tmp_path, monkeypatch) -> None:
    """Under the name asked for there is no folder; what is left is hidden."""
    monkeypatch.setitem(WRITERS, "voc", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    splits = read(data)
    process = os.fork()
    if not process:
        try:
            write_dataset(splits, tmp_path / "out", "voc")
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (left,) = (path.name for path in tmp_path.iterdir() if path != data)
    assert left.startswith(".out.")
