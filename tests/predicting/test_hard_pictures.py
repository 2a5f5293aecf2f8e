# SPDX-License-Identifier: BSD-3-Clause
"""Pictures and names that are rare, and what a run writes about pictures that it did not read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastdet.cli import main
from fastdet.predicting import predict
from fastdet.predicting.formats import CsvOptions


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30), (200, 99, 0)).save(folder / name)
    return folder


def annotations(file: Path, *names: str) -> Path:
    images = [
        {"id": number, "file_name": name, "height": 30, "width": 40}
        for number, name in enumerate(names, 10)
    ]
    file.write_text(json.dumps({"images": images}))
    return file


@pytest.mark.parametrize(("format", "folder"), [("yolo", "labels"), ("voc", "Annotations")])
def test_a_picture_that_was_not_read_has_no_file(
    format: Any, folder: str, detector, tmp_path: Path
) -> None:
    """Also where an annotation file states its size: an empty file would say that it is empty."""
    given = pictures(tmp_path / "in", "a.png", "c.png")
    (given / "b.png").write_bytes(b"broken")
    file = annotations(tmp_path / "a.json", "a.png", "b.png", "c.png")
    found = predict(detector[0], [given], tmp_path / "out", 1.0, file, format=format)
    assert list(found.unreadable) == [given / "b.png"]
    assert {f.stem for f in (tmp_path / "out" / folder).iterdir()} == {"a", "c"}
    a, b, c = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert (a["height"], a["width"]) == (c["height"], c["width"]) == (30, 40)
    assert b == {"id": 11, "file_name": "b.png"}


def test_what_a_stopped_run_has_not_looked_at_has_no_file(
    detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdet.predicting import run

    given = pictures(tmp_path / "in", "a.png", "b.png", "c.png")
    file = annotations(tmp_path / "a.json", "a.png", "b.png", "c.png")
    take = run._Run.take

    def stopped_at_b(self: run._Run, answers: list[Any]) -> None:
        if answers[0].job.path.name != "a.png":
            raise KeyboardInterrupt
        take(self, answers)

    monkeypatch.setattr(run._Run, "take", stopped_at_b)
    with pytest.raises(KeyboardInterrupt):
        predict(detector[0], [given], tmp_path / "out", 0.0, file, format="yolo")
    assert [f.name for f in (tmp_path / "out" / "labels").iterdir()] == ["a.txt"]


def test_a_kill_leaves_no_detection_of_an_unknown_image(
    detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """images.json is written before the detections whose ids it describes."""
    from fastdet.predicting import recording

    written: list[str] = []
    write_json = recording.write_json

    def noted(path: Path, content: object) -> None:
        written.append(path.name)
        write_json(path, content)

    monkeypatch.setattr(recording, "write_json", noted)
    predict(detector[0], [pictures(tmp_path / "in", "a.png")], tmp_path / "out")
    assert written == ["images.json", "detections.json"]


def test_slim_pictures_are_looked_at(detector, tmp_path: Path) -> None:
    """Resized to the size of the training, a side of them has less than a pixel."""
    given = pictures(tmp_path / "in", "a.png")
    Image.new("RGB", (66_000, 20)).save(given / "wide.png")  # more than a JPEG holds
    Image.new("RGB", (1, 900)).save(given / "high.png")
    found = predict(detector[0], [given], tmp_path / "out", 0.0)
    assert not found.unreadable
    assert {d["image_id"] for d in found.detections} == {1, 2, 3}
    assert Image.open(tmp_path / "out" / "wide.jpg").width == 65_500
    assert Image.open(tmp_path / "out" / "high.jpg").size == (1, 900)


def test_the_smallest_view(detector, tmp_path: Path) -> None:
    given = pictures(tmp_path / "in", "a.png")
    main(
        f"predict --checkpoint {detector[0]} --images {given} --out {tmp_path}/out "
        "--tta 0.001".split()
    )
    assert (tmp_path / "out" / "a.jpg").exists()


@pytest.mark.parametrize("threshold", ["nan", "2", "-1"])
def test_a_score_threshold_out_of_range(threshold: str, tmp_path: Path, refused) -> None:
    command = f"predict --checkpoint none --images {tmp_path} --out {tmp_path}/out"
    line = refused([*command.split(), "--score-threshold", threshold])
    assert "score_threshold: expected a number in [0, 1], got" in line


def test_a_picture_that_is_given_twice(detector, tmp_path: Path, refused) -> None:
    given = pictures(tmp_path / "in", "a.png")
    command = f"predict --checkpoint {detector[0]} --images {given} {given}/a.png"
    line = refused(f"{command} --out {tmp_path}/out".split())
    assert f"expected each picture once, got {given}/a.png twice" in line


def test_names_that_are_no_text(detector, tmp_path: Path) -> None:
    """A file name of Linux may be any bytes: formats that are text refuse it before the work."""
    given = pictures(tmp_path / "in", "a.png")
    (given / "a.png").rename(os.fsdecode(os.fsencode(given) + b"/caf\xe9.png"))
    for format in ("csv", "voc"):
        with pytest.raises(ValueError, match=r"image id 1 .*: expected a file name in UTF-8"):
            predict(detector[0], [given], tmp_path / format, 0.0, format=format)
        assert not (tmp_path / format).exists()
    by_id = CsvOptions(csv_image="id")
    predict(detector[0], [given], tmp_path / "id", 0.0, format="csv", csv=by_id)
    (row,) = (tmp_path / "id" / "detections.csv").read_text().splitlines()[1:]
    assert row.startswith("1,0 ")
    predict(detector[0], [given], tmp_path / "yolo", 0.0, format="yolo")
    assert len(list((tmp_path / "yolo" / "labels").iterdir())) == 1


def test_classes_that_a_format_cannot_hold_are_refused_before_the_work(tmp_path: Path) -> None:
    from tests.predicting.conftest import write_checkpoint

    checkpoint = tmp_path / "dog.ckpt"
    write_checkpoint(checkpoint, classes=["background", "red dog\n"])
    given = pictures(tmp_path / "in", "a.png")
    for format, message in (
        ("yolo", "expected names of classes that fit on a line"),
        ("voc", "expected class names of printable characters"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(checkpoint, [given], tmp_path / format, 0.0, format=format)  # type: ignore[arg-type]
        assert not (tmp_path / format).exists()
