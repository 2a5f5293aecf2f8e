# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet check`: its output, its files, its exit code, interruptions, and the repaired copy."""

import base64
import io
import json
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastdet.checking.check import check_dataset
from fastdet.checking.findings import KINDS
from fastdet.checking.pictures import PictureFile, look_at
from fastdet.checking.repair import write_repaired
from fastdet.cli import main
from fastdet.data import open_dataset
from fastdet.data.writers import write_dataset
from fastdet.evaluation.pictures import class_colour
from tests.checking.planted import HEIGHT, NO_MODEL, WIDTH, DataSet, annotation, scene
from tests.checking.test_annotations import polygon

Output = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    data = DataSet(tmp_path / "data")
    data.write()
    return data


def run(*arguments: object) -> int:
    """The exit code of `fastdet check`."""
    with pytest.raises(SystemExit) as stop:
        main(["check", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_clean_data_set(data: DataSet, capsys: Output) -> None:
    assert run(data.folder, "--model", "None", "--strict") == 0
    printed, told = capsys.readouterr()
    assert told == ""  # a progress bar is for terminals
    assert "0 errors, 0 warnings, 0 notes; 6 of 6 pictures decoded" in printed
    assert "dog" in printed
    assert run(data.folder, "--min-size", 240, "--max-size", 320) == 0
    assert "train: faster_rcnn at 240 to 320 pixels" in capsys.readouterr().out


def test_exit_codes_and_the_worst_first(data: DataSet, capsys: Output) -> None:
    command = (data.folder, "--model", "None", "--quick", "--workers", 1)
    data.plant(annotation(901, 1, [150, 9, 30, 40]))
    data.write()
    assert run(*command) == 0
    assert run(*command, "--strict") == 1
    data.plant(annotation(902, 1, [90, 10, -20, 20]))
    data.write()
    capsys.readouterr()
    assert run(*command) == 1
    printed = capsys.readouterr().out
    assert printed.index("box-flipped") < printed.index("box-partly-outside")
    assert "1 error, 1 warning, 0 notes; 6 of 6 pictures opened, not decoded" in printed
    assert "annotation id 902" in printed


def test_what_a_reader_leaves_out_has_file_names(data: DataSet) -> None:
    data.plant(annotation(901, 2, [1, float("inf"), 3, 4]))
    (spot,) = data.found()["box-not-finite"].places
    assert (spot.file_name, spot.index) == ("002.png", 1)


def test_the_files(data: DataSet, tmp_path: Path, capsys: Output) -> None:
    data.plant(*(annotation(900 + i, 1 + i % 4, [90, 10 + i, -20, 20]) for i in range(8)))
    data.plant(annotation(990, 2, [9e18, 10, 1e300, 20]), annotation(991, 2, [-5, -5, 0.1, 3]))
    data.train["images"][0]["file_name"] = "<b>.png"
    data.picture("001.png").rename(data.picture("<b>.png"))
    data.picture("003.png").unlink()
    data.add_image(31, "002.png", "val")
    data.write()
    out = tmp_path / "out"
    assert run(data.folder, "--out", out, "--drawn", 2, "--min-size", 100, "--max-size", 160) == 1
    content = json.loads((out / "check.json").read_text())
    assert content["complete"]
    assert [split["split"] for split in content["splits"]] == ["train", "val"]
    assert content["anchors"][0]["rows"][0]["group"] == "all"
    findings = {finding["name"]: finding for finding in content["findings"]}
    assert findings["box-flipped"]["count"] == 8
    assert findings["box-flipped"]["severity"] == "error"
    assert findings["box-flipped"]["places"][1] == {
        "split": "train",
        "image_id": 2,
        "file_name": "002.png",
        "annotation_id": 901,
        "detail": "[90, 11, -20, 20] in 160 x 120",
    }
    (leak,) = findings["leak-same-file"]["places"]
    assert leak["also"] == [{"split": "val", "image_id": 31, "file_name": "002.png"}]

    page = (out / "check.html").read_text()
    assert "<b>.png" not in page
    assert "&lt;b&gt;.png" in page
    assert not re.search(r"https?://|<script", page)
    section = page[page.index("box-flipped: 8") :]
    pictures = re.findall(r'base64,([^"]+)', section[: section.index("</section>")])
    assert len(pictures) == 2
    drawn = Image.open(io.BytesIO(base64.b64decode(pictures[0]))).convert("RGB")
    scale = drawn.width / 160  # the first box, from (70, 10) to (90, 30), in the class colour
    pixels = np.asarray(drawn).astype(int)
    edge, inside = (pixels[round(20 * scale), round(x * scale)] for x in (70, 80))
    assert abs(edge - class_colour(0)).max() < 60
    assert abs(inside - class_colour(0)).max() > 60

    assert run(data.folder, "--out", out) == 2
    assert "check.json exists: give --overwrite" in capsys.readouterr().err
    assert run(data.folder, "--out", out, "--overwrite", "--quick", "--model", "None") == 1
    assert not json.loads((out / "check.json").read_text())["pictures_decoded"]


def test_options_of_pictures_and_duplicates(data: DataSet, tmp_path: Path, capsys: Output) -> None:
    def found(*options: object) -> set[str]:
        run(data.folder, "--model", "None", "--out", tmp_path / "out", "--overwrite", *options)
        content = json.loads((tmp_path / "out" / "check.json").read_text())
        return {finding["name"] for finding in content["findings"]}

    turn = Image.Exif()
    turn[0x0112] = 6
    scene(60, HEIGHT, WIDTH).save(data.picture("turned.png"), exif=turn)
    data.add_image(31, "turned.png")
    data.write()
    assert found() == {"picture-turned"}
    assert found("--exif", "ignore") == {"picture-turned", "picture-size-differs"}
    assert "picture-truncated" in found("--max-pixels", 100)

    Image.fromarray(np.full((HEIGHT, WIDTH), 60_000, np.uint16)).save(data.picture("turned.png"))
    assert found("--bit-depth", 16) == {"picture-not-rgb"}
    assert found("--bit-depth", 12) == {"picture-not-rgb", "picture-truncated"}

    ImageOps.mirror(Image.open(data.picture("002.png"))).save(data.picture("turned.png"))
    assert found() == set()
    assert found("--flipped") == {"near-duplicate"}

    data.picture("turned.png").rename(data.folder / "beside.png")
    data.train["images"][-1]["file_name"] = "../beside.png"
    data.write()
    assert "annotations-unreadable" in found()
    assert found("--files-anywhere") == set()


def test_hostile_names_and_ids(data: DataSet, tmp_path: Path, capsys: Output) -> None:
    names = [
        "\ud800.png",
        "a\x00b.png",
        "\x1b[31mred.png",
        "[bold].png",
        "images",
    ]
    for identity, name in enumerate(names, 20):
        data.add_image(identity, name)
    data.train["categories"][1]["name"] = data.val["categories"][1]["name"] = "[/red]\ud800"
    data.plant(
        annotation(901, [float("nan")], [1, 2, 3, 4]), annotation(902, 10**400, [1, 2, 3, 4])
    )
    data.write()
    out = tmp_path / "out"
    assert run(data.folder, "--out", out, "--fix", tmp_path / "fix", "--model", "None") == 1
    assert "\x1b[31mred" not in capsys.readouterr().out
    content = json.loads((out / "check.json").read_text(), parse_constant=pytest.fail)
    found = {finding["name"]: finding for finding in content["findings"]}
    assert found["picture-missing"]["count"] == len(names)
    assert [place["annotation_id"] for place in found["unknown-image"]["places"]] == [901, 902]
    check_dataset(tmp_path / "fix", NO_MODEL)


MISTAKES = {
    "no folder": (["{tmp}/none"], "none: no such folder"),
    "no data": (["{tmp}/empty"], "no data set"),
    "drawn": (["{data}", "--drawn", "-1"], "drawn: expected 0 or more, got -1"),
    "min_size": (["{data}", "--min-size", "0"], "min_size: expected a number from 1 on, got 0"),
    "workers": (["{data}", "--workers", "0"], "workers: expected a number from 1 on, got 0"),
    "fix in the data": (["{data}", "--fix", "{data}/fixed"], "a new folder outside the data"),
    "fix the data": (["{data}", "--fix", "{data}"], "exists and is not an empty folder"),
    "fix over a file": (
        ["{data}", "--fix", "{data}/train.json"],
        "exists and is not an empty folder",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, data: DataSet, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "empty").mkdir()
    arguments, message = MISTAKES[mistake]
    before = sorted(data.folder.rglob("*"))
    assert run(*(text.format(tmp=tmp_path, data=data.folder) for text in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(data.folder.rglob("*")) == before


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_what_was_found(
    data: DataSet, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.plant(annotation(901, 1, [90, 10, -20, 20]))
    data.picture("001.png").write_bytes(b"")
    data.write()
    seen = []

    def interrupted(number: int, _: int) -> None:
        seen.append(number)
        if number == 3:
            raise KeyboardInterrupt

    report = check_dataset(data.folder, NO_MODEL, interrupted)
    assert len(report.files) == 3
    assert report.stopped is not None
    assert {f.name for f in report.findings} == {"box-flipped", "picture-unreadable"}

    def look_and_stop(path: Path, options: Any, decode: bool) -> PictureFile:
        if path.name == "003.png":
            os.kill(os.getpid(), signal.SIGINT)
        return look_at(path, options, decode)

    monkeypatch.setattr("fastdet.checking.pictures.look_at", look_and_stop)
    assert threading.current_thread() is threading.main_thread()
    out, fix = tmp_path / "out", tmp_path / "fix"
    arguments = (data.folder, "--model", "None", "--out", out, "--fix", fix, "--workers", 1)
    assert run(*arguments) == 130
    content = json.loads((out / "check.json").read_text())
    assert not content["complete"]
    assert content["pictures_looked_at"] < content["pictures"] == 6
    assert content["findings"][0]["name"] == "box-flipped"
    told = capsys.readouterr()
    assert "stopped before the end" in told.out
    assert re.search(
        r"stopped after \d of 6 pictures; .*check.json and .*check.html were", told.err
    )
    assert "no repaired copy was made" in told.err
    assert not fix.exists()


def test_a_stop_before_the_pictures_says_that_nothing_was_written(
    data: DataSet, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdet.checking.check.read_splits", stopped)
    assert run(data.folder) == 130
    assert capsys.readouterr().err.strip() == "fastdet: stopped: nothing was written"


def plant_what_can_be_repaired(data: DataSet) -> None:
    for record in data.train["annotations"]:
        record["segmentation"] = polygon(*record["bbox"])
    data.plant(
        annotation(901, 1, [90, 10, -20, 20], note="kept"),
        annotation(902, 1, [150, 100, 30, 30]),
        annotation(903, 1, [90, 10, 0, 20]),
        annotation(904, 1, [160, 10, 20, 20]),
        annotation(905, 2, [31, 32, 33, 34]),
        annotation(906, 2, [31, 32, 33, 34]),
        annotation(907, 77, [31, 32, 33, 34]),
        annotation(908, 2, [float("nan"), 32, 33, 34]),
        annotation(909, 2, [31, 32, 33.25, 34], category_id=99),
    )
    data.train["info"] = {"year": 2020}
    data.picture("003.png").write_bytes(data.picture("003.png").read_bytes()[:3000])
    scene(50, 80, 60).save(data.picture("small.png"))
    data.add_image(31, "small.png")
    data.plant(
        annotation(911, 31, [10, 10, 100, 20]),
        annotation(912, 31, [1, 1, 9, 9], segmentation={"size": [120, 160], "counts": [19200]}),
    )
    data.write()


def test_a_repaired_copy(data: DataSet, tmp_path: Path, capsys: Output) -> None:
    plant_what_can_be_repaired(data)
    before = {path: path.read_bytes() for path in data.folder.rglob("*") if path.is_file()}
    fix = tmp_path / "fix"
    assert run(data.folder, "--model", "None", "--fix", fix) == 1
    printed = capsys.readouterr().out
    for line in (
        "1 flipped boxes with exchanged corners",
        "2 boxes cut at the border",
        "2 boxes removed that are empty or outside",
        "1 repeated annotations removed",
        "1 annotations removed that cannot be used (unknown-image)",
        "1 annotations removed that cannot be used (box-not-finite)",
        "1 annotations removed that cannot be used (unknown-category)",
        "1 pictures removed that are missing or cannot be decoded",
        "2 annotations removed with their pictures",
        "1 sizes of pictures corrected",
        "1 run lengths removed whose picture has another size",
    ):
        assert f"  {line}\n" in printed
    assert before == {path: path.read_bytes() for path in data.folder.rglob("*") if path.is_file()}

    content = json.loads((fix / "train.json").read_text())
    assert content["info"] == {"year": 2020}
    assert [image["id"] for image in content["images"]] == [1, 2, 4, 31]
    assert (content["images"][3]["width"], content["images"][3]["height"]) == (80, 60)
    by_id = {record["id"]: record for record in content["annotations"]}
    kept = {record["id"] for record in data.train["annotations"]}
    assert set(by_id) == kept - {30, 31, 903, 904, 906, 907, 908, 909}
    assert by_id[901]["bbox"] == [70, 10, 20, 20]
    assert by_id[901]["note"] == "kept"
    assert by_id[902]["bbox"] == [150, 100, 10, 20]
    assert by_id[902]["area"] == 200
    assert by_id[911]["bbox"] == [10, 10, 70, 20]
    assert "segmentation" not in by_id[912]
    unchanged = data.train["annotations"][0]
    assert by_id[unchanged["id"]] == unchanged

    report = check_dataset(fix, NO_MODEL)
    names = {finding.name for finding in report.findings}
    assert names == {"segmentation-missing", "picture-not-listed"}  # which are left to a person
    assert len(open_dataset(fix, "train")[0][1]["boxes"]) == 4
    assert run(data.folder, "--fix", fix) == 2
    assert "fix exists and is not an empty folder" in capsys.readouterr().err


def test_a_repaired_copy_of_several_image_folders(data: DataSet, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split, content in (("train", data.train), ("val", data.val)):
        (folder / f"{split}2017").mkdir()
        for image in content["images"]:
            data.picture(image["file_name"]).rename(folder / f"{split}2017" / image["file_name"])
        path = folder / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
    (folder / "val2017" / "011.png").unlink()
    fix = tmp_path / "fix"
    assert run(folder, "--model", "None", "--fix", fix, "--quick") == 1
    assert check_dataset(fix, NO_MODEL).findings == []
    images = json.loads((fix / "val.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["val/012.png"]
    assert (fix / "images" / "val").is_symlink()


def test_a_repaired_copy_names_the_split_that_it_lacks(
    data: DataSet, tmp_path: Path, capsys: Output
) -> None:
    (data.folder / "val.json").write_text("{")
    assert run(data.folder, "--model", "None", "--fix", tmp_path / "fix") == 1
    told = "  1 splits left out whose annotations cannot be read (val)"
    assert told in capsys.readouterr().out.splitlines()
    assert not (tmp_path / "fix" / "val.json").exists()


def test_nothing_to_repair(data: DataSet, tmp_path: Path, capsys: Output) -> None:
    assert run(data.folder, "--model", "None", "--fix", tmp_path / "fix") == 0
    told = f"repaired copy: {tmp_path}/fix, where nothing had to be changed"
    assert capsys.readouterr().out.splitlines()[-1] == told


def test_a_broken_picture_does_not_end_the_check_of_yolo(data: DataSet, tmp_path: Path) -> None:
    yolo, fix = tmp_path / "yolo", tmp_path / "fix"
    write_dataset(
        {name: open_dataset(data.folder, name) for name in ("train", "val")}, yolo, "yolo"
    )
    (yolo / "images" / "train" / "002.png").write_text("no picture")
    with pytest.raises(ValueError, match="1 of 4 pictures cannot be read"):
        open_dataset(yolo, "train")
    report = check_dataset(yolo, NO_MODEL)
    found = {finding.name: finding for finding in report.findings}
    assert set(found) == {"picture-unreadable", "annotation-left-out"}
    assert [str(place.file_name) for place in found["picture-unreadable"].places] == ["002.png"]
    assert found["annotation-left-out"].count == 2
    done = write_repaired(report, fix)
    assert done["pictures removed that are missing or cannot be decoded"] == 1
    assert open_dataset(fix, "train").annotations.file_names == [
        f"train/{name}" for name in ("001.png", "003.png", "004.png")
    ]
    assert {finding.name for finding in check_dataset(fix, NO_MODEL).findings} == {
        "picture-not-listed"
    }


def test_nothing_is_repaired_without_a_split(data: DataSet, tmp_path: Path, capsys: Output) -> None:
    for name in ("train", "val"):
        (data.folder / f"{name}.json").write_text("{")
    fix = tmp_path / "fix"
    assert run(data.folder, "--fix", fix) == 2
    assert "nothing was repaired, because no split could be read" in capsys.readouterr().err
    assert not fix.exists()


def test_other_formats_are_repaired_with_their_masks(data: DataSet, tmp_path: Path) -> None:
    plant_what_can_be_repaired(data)
    report = check_dataset(data.folder, NO_MODEL)
    as_other = [
        replace(
            split,
            source=replace(split.source, format="other"),
            annotations=replace(split.annotations, has_ids=False),
        )
        for split in report.splits
    ]
    write_repaired(replace(report, splits=as_other), tmp_path / "fix")
    content = json.loads((tmp_path / "fix" / "train.json").read_text())
    assert [record["id"] for record in content["annotations"]] == list(range(1, 13))
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    report = check_dataset(tmp_path / "fix", NO_MODEL)
    assert {f.name for f in report.findings} == {"segmentation-missing", "picture-not-listed"}
    masks = [record.get("segmentation") for record in content["annotations"]]
    assert sum(mask is not None for mask in masks) == 6


def test_the_page_names_every_finding() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checking.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \|", page, re.MULTILINE))
    assert rows == {name: kind.severity for name, kind in KINDS.items()}
