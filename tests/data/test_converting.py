# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet convert` and `fastdet split`: every option, and one line for each mistake."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastdet.cli import main
from fastdet.data import open_dataset, write_shapes
from fastdet.data.converting import convert, divide
from fastdet.data.formats import find_splits
from tests.data.formats.test_voc import picture, put, xml


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=20, val=2, size=32)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """20 pictures of Pascal VOC without lists; no file says what its pixels count from."""
    folder = tmp_path / "voc"
    for number in range(20):
        put(folder / f"{number}.xml", xml(f"{2 + number} 20 30 28"))
        picture(folder / f"{number}.jpg")
    return folder


@pytest.mark.filterwarnings("ignore:.*pixels are taken to count")
def test_convert(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["convert", str(voc), str(out)])
    printed = capsys.readouterr().out
    assert printed == f"default: 20 images, 20 objects\n{out}\n"
    dataset = open_dataset(out, "default")
    assert dataset.classes == ["background", "cat"]
    assert dataset[0][1]["boxes"].tolist() == [[1, 19, 30, 28]]  # from 1: Pascal VOC's own rule

    main(f"convert {voc} {out}2 --voc-first-pixel 0 --images none".split())
    content = json.loads((tmp_path / "out2" / "default.json").read_text())
    assert content["annotations"][0]["bbox"] == [2, 20, 28, 8]
    assert not (tmp_path / "out2" / "images").exists()
    main(f"convert {voc} {out}3 --voc-first-pixel 1 --images link --format voc".split())
    assert (tmp_path / "out3" / "JPEGImages" / "0.jpg").samefile(voc / "0.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what fastdet writes needs no guess
        again = open_dataset(tmp_path / "out3", "default")
    assert again[0][1]["boxes"].tolist() == [[1, 19, 30, 28]]


def test_convert_keeps_masks_where_the_format_can(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for format in ("coco", "yolo", "voc"):
        main(f"convert {shapes} {tmp_path / format} --format {format} --masks".split())
    printed = capsys.readouterr().out
    assert "masks of train left out, as the XML files of VOC have boxes alone: " in printed
    assert printed.count("train: 20 images") == 3
    before, after = (open_dataset(data, "val", masks=True) for data in (shapes, tmp_path / "coco"))
    for index in range(2):
        assert before[index][1]["masks"].equal(after[index][1]["masks"])
        assert before[index][1]["boxes"].equal(after[index][1]["boxes"])
    (line, *_) = (tmp_path / "yolo" / "labels" / "val" / "val_00000.txt").read_text().splitlines()
    assert len(line.split()) >= 1 + 2 * 5
    # A shape's box is that around its mask.
    assert "replaced" not in printed


def test_split(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(f"split {shapes} {out} --split train".split())
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in printed[:3]] == [
        "train: 16 images",
        "val: 2 images",
        "test: 2 images",
    ]
    assert printed[3] == str(out)
    parts = {name: open_dataset(out, name) for name in ("train", "val", "test")}
    whole = open_dataset(shapes, "train")
    names = [file for part in parts.values() for file in part.annotations.file_names]
    assert sorted(names) == sorted(whole.annotations.file_names)
    assert sum(part.num_objects for part in parts.values()) == whole.num_objects
    assert (out / "images" / names[0]).samefile(shapes / "images" / names[0])  # a link
    for part in parts.values():
        assert part.classes == whole.classes
        for index in range(len(part)):
            image, target = part[index]
            expected_image, expected = whole[whole.image_ids.index(part.image_ids[index])]
            assert image.equal(expected_image)
            assert target["boxes"].equal(expected["boxes"])


def test_a_split_is_divided_by_its_other_name(shapes: Path, tmp_path: Path) -> None:
    assert divide(shapes, tmp_path / "o", [0.5, 0.5], split="validation").counts["val"][0] == 1


def test_the_same_seed_gives_the_same_division(shapes: Path, tmp_path: Path) -> None:
    def names(out: str, *options: str) -> list[list[str]]:
        main(["split", str(shapes), str(tmp_path / out), "--split", "train", *options])
        content = [json.loads((tmp_path / out / f"{n}.json").read_text()) for n in ("train", "val")]
        return [[image["file_name"] for image in part["images"]] for part in content]

    first = names("a", "--fractions", "0.75", "0.25", "--images", "none")
    assert [len(part) for part in first] == [15, 5]
    assert not (tmp_path / "a" / "images").exists()
    assert first == names("b", "--fractions", "0.75", "0.25", "--images", "copy", "--seed", "0")
    assert (tmp_path / "b" / "images" / first[0][0]).stat().st_nlink == 1
    assert first != names("c", "--fractions", "0.75", "0.25", "--seed", "1")
    main(f"split {shapes} {tmp_path / 'd'} --split train --masks".split())
    assert "masks" in open_dataset(tmp_path / "d", "val", masks=True)[0][1]


@pytest.mark.filterwarnings("ignore:.*pixels are taken to count")
def test_unsplit_data_is_divided(voc: Path, tmp_path: Path) -> None:
    written = divide(voc, tmp_path / "out", (0.5, 0.5))
    assert written.counts == {"train": (10, 10), "val": (10, 10)}
    boxes = [
        split.read(masks=False, exif="apply", files_anywhere=False).boxes_xywh
        for split in find_splits(tmp_path / "out").values()
    ]
    assert sorted(np.concatenate(boxes)[:, 0].tolist()) == list(range(1, 21))


MISTAKES = {
    "no data": ("convert {tmp}/none {tmp}/o", "none: no such folder"),
    "no format": ("convert {tmp}/empty {tmp}/o", "empty: no data set of a known format"),
    "out has content": ("convert {shapes} {shapes}", "exists and is not an empty folder"),
    "out is a file": ("convert {shapes} {tmp}/file", "file exists and is not an empty folder"),
    "out leads nowhere": ("convert {shapes} {tmp}/dangling", "exists and is not an empty folder"),
    "out in the data": ("convert {shapes} {shapes}/train", "a new folder outside the data set"),
    "parts in the data": ("split {shapes} {shapes}/o --split val", "folder outside the data set"),
    "a picture is missing": (
        "convert {gone} {tmp}/o",
        "2.png: no such image file (1 of 2 are miss",
    ),
    "no VOC": ("convert {shapes} {tmp}/o --voc-first-pixel 0", "voc_first_pixel: expected data of"),
    "out of the folder": ("convert {up} {tmp}/o", "leads out of the image folder"),
    "broken": ("convert {broken} {tmp}/o", "a.xml: not an XML file: "),
    "a video": ("convert {video} {tmp}/o", "expected CVAT for images 1.1, got the tracks of a v"),
    "several splits": ("split {shapes} {tmp}/o", "split: expected the name of one of train, val"),
    "no such split by its other name": (
        "split {gone} {tmp}/o --split valid",
        "expected train, got valid",
    ),
    "no such split": ("split {shapes} {tmp}/o --split test", "expected train or val, got test"),
    "data over itself": ("split {shapes} {shapes} --split val", "is not an empty folder"),
    "one fraction": ("split {shapes} {tmp}/o --fractions 1", "expected two or three numbers"),
    "four": ("split {shapes} {tmp}/o --fractions .4 .2 .2 .2", "expected two or three numbers"),
    "the sum": ("split {shapes} {tmp}/o --fractions 0.8 0.1", "fractions: expected the sum 1, got"),
    "negative": ("split {shapes} {tmp}/o --fractions 1.5 -0.5", "fractions: expected two or th"),
    "not finite": ("split {shapes} {tmp}/o --fractions nan 0.5", "fractions: expected two or th"),
    "seed": ("split {shapes} {tmp}/o --seed -1", "seed: expected 0 or more, got -1"),
    "too few": ("split {shapes} {tmp}/o --split val", "expected an image"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_one_line(
    mistake: str, shapes: Path, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    put(tmp_path / "broken" / "a.xml", "<annotation>")
    put(tmp_path / "video" / "a.xml", "<annotations><track id='0'/></annotations>")
    put(tmp_path / "up" / "Annotations" / "a.xml", xml("1 2 3 4"))
    put(tmp_path / "up" / "ImageSets" / "Main" / "train.txt", "../../a\n")
    sides = {"width": 40, "height": 30}
    images = [{"id": id, "file_name": f"{id}.png", **sides} for id in (1, 2)]
    content = {"images": images, "annotations": [], "categories": []}
    put(tmp_path / "gone" / "train.json", json.dumps(content))
    picture(tmp_path / "gone" / "images" / "1.png")
    folders = {name: tmp_path / name for name in ("gone", "up", "broken", "video")}
    command, message = MISTAKES[mistake]
    assert message in refused(command.format(tmp=tmp_path, shapes=shapes, **folders).split())
    assert not (tmp_path / "o").exists()


TWICE = """
import sys, warnings
from fastdet.cli import main
data, out = sys.argv[1:]
main(["convert", data, out])
warnings.simplefilter("always")  # the same one again
print("-- debug", file=sys.stderr)
main(["convert", data, f"{out}2", "--debug"])
"""


@pytest.mark.slow
def test_a_warning_is_one_line(tmp_path: Path) -> None:
    """In a process of its own: pytest collects the warnings of its process."""
    picture(tmp_path / "data" / "a.jpg")
    put(tmp_path / "data" / "a.txt", "0 nan 0.5 0.5 0.5\n")
    put(tmp_path / "data" / "classes.txt", "cat\n")
    command = [sys.executable, "-c", TWICE, str(tmp_path / "data"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    short, with_place = done.stderr.split("-- debug\n")
    (line,) = short.splitlines()
    assert line.startswith(f"fastdet: warning: {tmp_path}/data: 1 annotation skipped: a value is")
    assert "yolo.py:" in with_place


def test_mistakes_in_python(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="voc_first_pixel: expected 0 or 1, got 2"):
        convert(shapes, tmp_path / "o", "coco", voc_first_pixel=2)
    with pytest.raises(ValueError, match="format: expected coco, yolo, voc, got 'png'"):
        convert(shapes, tmp_path / "o", "png")
