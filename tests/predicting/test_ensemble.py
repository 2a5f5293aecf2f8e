# SPDX-License-Identifier: BSD-3-Clause
"""Ensembles of files of results: the same boxes as ensemble-boxes, and files that do not match."""

import csv
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdet.cli import main
from fastdet.predicting.ensemble import fuse
from fastdet.predicting.formats import Results, read_results
from tests import reference
from tests.data_sets import SAMPLE

WEIGHTS = [2.0, 1.0, 0.5]


def guesses(content: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """What a model could find: three quarters of the objects, moved a little; no scores equal."""
    rng = np.random.default_rng(seed)
    found = []
    for annotation in content["annotations"]:
        if rng.random() < 0.25:
            continue
        x, y, w, h = annotation["bbox"]
        dx, dy, dw, dh = rng.normal(0, 0.08, 4)
        box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
        found.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": [float(side) for side in box],
                "score": float(rng.random()),
            }
        )
    return found


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return json.loads((SAMPLE / "val.json").read_text())


@pytest.fixture
def files(content: dict[str, Any], tmp_path: Path) -> list[Path]:
    """The results of three models, each in its folder, as fastdet predict writes them."""
    index = {name: content[name] for name in ("images", "categories")}
    written = []
    for seed in range(3):
        folder = tmp_path / f"model{seed}"
        folder.mkdir()
        (folder / "images.json").write_text(json.dumps(index))
        written.append(folder / "detections.json")
        written[-1].write_text(json.dumps(guesses(content, seed)))
    return written


def run(files: Sequence[Path], *options: object) -> None:
    main(["ensemble", *map(str, files), *map(str, options)])


def by_picture(results: Results) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes, scores and labels of each image that has any, by its id."""
    return {
        image.id: (results.boxes[rows], results.scores[rows], results.labels[rows])
        for image, rows in zip(results.images, results.rows(), strict=True)
        if len(rows)
    }


def inputs_of_ensemble_boxes(parts: Sequence[Results], image_id: int) -> tuple[list[Any], ...]:
    """Boxes as fractions, scores and labels, one array for each model."""
    image = next(image for image in parts[0].images if image.id == image_id)
    sides = np.array([image.width, image.height] * 2, np.float64)
    empty = np.empty((0, 4)), np.empty(0), np.empty(0)
    of_models = [by_picture(part).get(image_id, empty) for part in parts]
    boxes = [(boxes / sides).clip(0, 1) for boxes, _, _ in of_models]
    return boxes, [s for _, s, _ in of_models], [labels for *_, labels in of_models]


def assert_same(ours: tuple, theirs: tuple, sides: np.ndarray) -> None:
    order = np.argsort(-np.asarray(theirs[1]), kind="stable")
    np.testing.assert_allclose(ours[0] / sides, np.asarray(theirs[0])[order], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours[1], np.asarray(theirs[1])[order], rtol=1e-6)
    assert ours[2].tolist() == np.asarray(theirs[2])[order].tolist()


@pytest.mark.parametrize("weights", [[], WEIGHTS])
@pytest.mark.parametrize("method", ["wbf", "max", "nms"])
def test_equals_ensemble_boxes(
    method: Any, weights: list[float], files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble_boxes = pytest.importorskip("ensemble_boxes", exc_type=ImportError)
    uncompiled = ensemble_boxes.ensemble_boxes_nms.nms_float_fast.py_func  # compiling takes 15 s
    monkeypatch.setattr(ensemble_boxes.ensemble_boxes_nms, "nms_float_fast", uncompiled)
    # ensemble-boxes clips to the picture, so the boxes are moved far inside a larger one.
    parts = []
    for part in map(read_results, files):
        images = [replace(image, height=4000, width=4000) for image in part.images]
        moved = part.boxes_xywh + np.array([1000, 1000, 0, 0])
        parts.append(replace(part, images=images, boxes_xywh=moved))
    name, conf_type = ("wbf", "max") if method == "max" else (method, "avg")
    if method == "nms":
        fused = fuse(parts, weights, name, 0.6, 0.0)
    else:
        fused = fuse(parts, weights, name, 0.6, 0.1, conf_type)
    ours = by_picture(fused)
    compared = 0
    for image_id, found in ours.items():
        rows = inputs_of_ensemble_boxes(parts, image_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = (
                ensemble_boxes.nms(*rows, iou_thr=0.6, weights=weights or None)
                if method == "nms"
                else ensemble_boxes.weighted_boxes_fusion(
                    *rows,
                    weights=weights or None,
                    iou_thr=0.6,
                    skip_box_thr=0.1,
                    conf_type=conf_type,
                )
            )
        assert_same(found, theirs, np.full(4, 4000.0))
        compared += len(found[1])
    assert compared == len(fused.scores) > 100
    assert compared < sum(len(part.scores) for part in parts)


def test_soft_nms_picture_by_picture(files: list[Path]) -> None:
    parts = [read_results(file) for file in files]
    ours = by_picture(fuse(parts, method="soft-nms"))
    for image_id, (boxes, scores, labels) in ours.items():
        rows = [by_picture(part)[image_id] for part in parts if image_id in by_picture(part)]
        columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True)]
        picked, lowered = reference.soft_nms(
            columns[0], columns[1], 0.0, 0.5, 0.001, "gaussian", columns[2]
        )
        np.testing.assert_array_equal(boxes, columns[0][picked].numpy())
        np.testing.assert_array_equal(labels, columns[2][picked].numpy())
        np.testing.assert_allclose(scores, lowered, rtol=1e-9)


def test_hand_worked(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    box = {"image_id": 1, "category_id": 5, "bbox": [0, 0, 4, 4], "score": 0.75}
    other = {**box, "bbox": [0, 0, 4, 3], "score": 0.25}
    alone = {**box, "category_id": 6, "score": 0.5}
    files[0].write_text(json.dumps([alone, box]))
    files[1].write_text(json.dumps([other]))
    run(files, "--out", tmp_path / "c.json")
    fused = {**box, "bbox": [0.0, 0.0, 4.0, 3.75], "score": 0.5}
    missed = {**alone, "bbox": [0.0, 0.0, 4.0, 4.0], "score": 0.25}
    assert json.loads((tmp_path / "c.json").read_text()) == [fused, missed]
    assert not (tmp_path / "images.json").exists()
    run(files, "--out", tmp_path / "d.json", "--skip-score-threshold", 0.6)
    assert [d["score"] for d in json.loads((tmp_path / "d.json").read_text())] == [0.375]
    run(files, "--out", tmp_path / "e.json", "--weights", 3, 1, "--conf-type", "max")
    first, second = json.loads((tmp_path / "e.json").read_text())
    assert first["bbox"][3] == pytest.approx((4 * 2.25 + 3 * 0.25) / 2.5)
    assert (first["score"], second["score"]) == (0.75, 0.5)
    run(files, "--out", tmp_path / "f.json", "--iou-threshold", 0.8)
    assert len(json.loads((tmp_path / "f.json").read_text())) == 3


def test_an_ensemble_keeps_what_the_ids_mean(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fused" / "detections.json"
    run(files, "--out", out, "--weights", *WEIGHTS)
    results = read_results(out)
    assert results.images == read_results(files[0]).images
    printed = f"{len(results.scores)} detections on {len(results.images)} pictures of 3 models"
    assert f"{printed}: {out}" in capsys.readouterr().out
    same = fuse([read_results(file) for file in files], WEIGHTS)
    np.testing.assert_array_equal(results.scores, same.scores)
    run(files[:2], "--out", tmp_path / "fused" / "other.json", "--method", "nms")  # same pictures


def test_an_ensemble_to_hand_in(files: list[Path], content: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "submission.csv"
    run(files, "--out", out, "--format", "csv", "--first-label", 1)
    lines = list(csv.reader(out.read_text().splitlines()))[1:]
    assert [name for name, _ in lines] == [Path(i["file_name"]).stem for i in content["images"]]
    fused = fuse([read_results(file) for file in files])
    assert sum(len(text.split()) for _, text in lines) == 6 * len(fused.scores)
    labels = {int(label) for _, text in lines for label in text.split()[::6]}
    assert labels == set(fused.labels.tolist())
    words = ["--csv-row", "name score cx cy w h", "--csv-fractions", "--csv-nothing", "nothing"]
    words += ["--skip-score-threshold", 1, "--csv-image", "file_name", "--overwrite"]
    run(files, "--out", out, "--format", "csv", *words)
    lines = list(csv.reader(out.read_text().splitlines()))[1:]
    assert lines == [[image["file_name"], "nothing"] for image in content["images"]]
    run(files, "--out", out, "--format", "csv", *words[:3], "--overwrite")
    texts = [text.split() for _, text in csv.reader(out.read_text().splitlines())][1:]
    assert {text[0] for text in texts if text} <= {c["name"] for c in content["categories"]}
    assert all(-1 < float(x) < 2 for text in texts for x in (*text[1:6], *text[7:12]))
    for format, folder in (("yolo", "labels"), ("voc", "Annotations")):
        run(files, "--out", tmp_path / format, "--format", format)
        written = [f for f in (tmp_path / format / folder).rglob("*") if f.is_file()]
        assert len(written) == len(content["images"])


def test_results_of_other_tools_with_the_annotations(
    files: list[Path], content: dict[str, Any], tmp_path: Path
) -> None:
    for file in files:
        (file.parent / "images.json").unlink()
    out = tmp_path / "out.csv"
    options = ["--out", out, "--format", "csv"]
    run(files, *options, "--annotations", SAMPLE / "val.json")
    assert len(out.read_text().splitlines()) == len(content["images"]) + 1
    run(files, "--out", tmp_path / "out.json")
    assert len(read_results(tmp_path / "out.json").images) <= len(content["images"])


def test_masks_are_kept_by_nms_alone(content: dict[str, Any], tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    masks = [[[0.0, 0.0, n, 0.0, 0.0, n]] for n in (5.0, 6.0)]
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    for file, mask, score in zip(files, masks, (0.25, 0.75), strict=True):
        file.write_text(json.dumps([{**box, "score": score, "segmentation": mask}]))
    run(files, "--out", tmp_path / "c.json", "--method", "nms")
    assert read_results(tmp_path / "c.json").segmentations == masks[1:]
    with pytest.warns(UserWarning, match="masks are left out: a fused box has none"):
        run(files, "--out", tmp_path / "d.json")
    assert read_results(tmp_path / "d.json").segmentations is None


def changed(file: Path, change: str) -> None:
    """Makes what a file says differ from the others."""
    index = file.parent / "images.json"
    content, found = json.loads(index.read_text()), json.loads(file.read_text())
    if change == "name":
        content["images"][0]["file_name"] = "other.jpg"
    elif change == "size":
        content["images"][0]["width"] += 1
    elif change == "fewer":
        gone = content["images"].pop()["id"]
        found = [d for d in found if d["image_id"] != gone]
    elif change == "class":
        content["categories"][0]["name"] = "other"
    index.write_text(json.dumps(content))
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("name", "expected results of the same pictures, but image id"),
        ("size", "expected results of the same pictures, but image id"),
        ("fewer", "is only in {0}, not in {1}"),
        ("class", "expected results of the same classes, but category id"),
    ],
)
def test_files_that_do_not_belong_together(
    change: str, expected: str, files: list[Path], tmp_path: Path, refused
) -> None:
    changed(files[1], change)
    command = ["ensemble", *map(str, files), "--out", str(tmp_path / "c.json")]
    line = refused(command)
    assert expected.format(*files) in line
    assert not (tmp_path / "c.json").exists()


def test_ids_without_a_description(files: list[Path], tmp_path: Path, refused) -> None:
    (files[1].parent / "images.json").unlink()
    found = json.loads(files[1].read_text())
    found[0]["category_id"] = 999
    files[1].write_text(json.dumps(found))
    command = ["ensemble", *map(str, files), "--out", str(tmp_path / "c.json")]
    assert f"{files[1]}: expected the category ids of {files[0]}, got 999" in refused(command)
    for key, what in (("image_id", "image"), ("category_id", "category")):
        record = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}
        (tmp_path / "a.json").write_text(json.dumps([record]))
        (tmp_path / "b.json").write_text(json.dumps([{**record, key: 2}]))
        command = f"ensemble {tmp_path}/a.json {tmp_path}/b.json --out {tmp_path}/c.json".split()
        assert f"which have no {what} id in common" in refused(command)


REFUSED = {
    "": "expected the results of two or more models, got 1",
    "B --weights 1": "weights: expected 2, one a model, got 1",
    "B --weights 1 0": "weights: expected finite numbers > 0, got [1.0, 0.0]",
    "B --iou-threshold 2": "iou_threshold: expected a number in [0, 1], got 2.0",
    "B --method soft-nms --iou-threshold 0.5": "iou_threshold: expected none with soft-nms",
    "B --skip-score-threshold 2": "skip_score_threshold: expected a number in [0, 1], got 2.0",
    "A": "expected each file once, got",
    "B --out x.csv": "out: expected a .json file for the format coco, got x.csv",
    "B --out images.json": "out: expected a .json file for the format coco, got images.json",
    "B --out x.json --format csv": "out: expected a .csv file for the format csv, got x.json",
    "B --out x.json --format voc": "out: expected a folder for the format voc, got x.json",
    "B --out A --overwrite": "is one of the results to fuse: give another --out",
    "B --out other/c.json": "images.json exists: give --overwrite, or another --out",
    "B --out old.json": "old.json exists: give --overwrite, or another --out",
    "missing.json": "No such file",
}


@pytest.mark.parametrize("options", REFUSED)
def test_refused(
    options: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.json").write_text("[]")
    Path("other").mkdir()
    Path("other/images.json").write_text('{"images": [], "categories": []}')
    names = {"A": str(files[0]), "B": str(files[1])}
    command = ["ensemble", "A", *options.split()]
    if "--out" not in command:
        command += ["--out", "c.json"]
    assert REFUSED[options] in refused([names.get(word, word) for word in command])
    assert sorted(path.name for path in Path().iterdir()) == sorted(
        ["old.json", "other", "model0", "model1", "model2"]
    )
