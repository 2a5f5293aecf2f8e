# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of files of results: pycocotools' numbers, whatever the ids and the format of data."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastdet.cli import main
from fastdet.data.converting import convert
from fastdet.evaluation.coco_metrics import STATS
from fastdet.predicting.evaluating import evaluate_results
from tests.data_sets import SAMPLE, data_sets
from tests.predicting.test_ensemble import guesses


def write_results(folder: Path, content: dict[str, Any], found: list[dict[str, Any]]) -> Path:
    """A file of results with its images.json."""
    folder.mkdir()
    index = {name: content[name] for name in ("images", "categories")}
    (folder / "images.json").write_text(json.dumps(index))
    (folder / "detections.json").write_text(json.dumps(found))
    return folder / "detections.json"


def pycocotools_stats(
    truth: Path, file: Path, kind: Literal["bbox", "segm"] = "bbox"
) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        evaluation = COCOeval(annotations, annotations.loadRes(str(file)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


@pytest.mark.parametrize("data", data_sets("bccd", "coco_by"))
@pytest.mark.parametrize("described", [True, False])
def test_equals_pycocotools(data: Path, described: bool, tmp_path: Path) -> None:
    content = json.loads((data / "val.json").read_text())
    file = write_results(tmp_path / "results", content, guesses(content, 0))
    if not described:
        (file.parent / "images.json").unlink()
    metrics = evaluate_results(file, data)
    assert [metrics.stats[name] for name in STATS] == pycocotools_stats(data / "val.json", file)
    assert metrics.images == len(content["images"])
    assert 0.1 < metrics.stats["AP"] < 0.9


def test_masks_are_evaluated_too(tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    found = [
        {**{key: o[key] for key in ("image_id", "category_id", "bbox", "segmentation")}, "score": s}
        for o, s in zip(
            content["annotations"],
            np.random.default_rng(0).random(len(content["annotations"])).tolist(),
            strict=True,
        )
        if not o["iscrowd"] and s < 0.8
    ]
    file = write_results(tmp_path / "results", content, found)
    metrics = evaluate_results(file, SAMPLE)
    assert metrics.masks is not None
    expected = pycocotools_stats(SAMPLE / "val.json", file, "segm")
    assert [metrics.masks.stats[name] for name in STATS] == expected
    found[3]["segmentation"] = {"size": [1, 1], "counts": [1]}
    file = write_results(tmp_path / "broken", content, found)
    with pytest.raises(ValueError, match=r"row 3, a detection of image id .*got .*RLE's"):
        evaluate_results(file, SAMPLE)


@pytest.mark.parametrize("format", ["coco", "yolo", "voc"])
def test_other_ids_and_formats(format: Any, tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    file = write_results(tmp_path / "results", content, guesses(content, 0))
    expected = evaluate_results(file, SAMPLE).stats
    # The same results under other ids, in another order, under a longer path.
    for image in content["images"]:
        image["id"] = 9000 - image["id"]
        image["file_name"] = f"photos/{image['file_name']}"
    for category in content["categories"]:
        category["id"] = 500 - category["id"]
    found = guesses(json.loads((SAMPLE / "val.json").read_text()), 0)
    for record in found:
        record["image_id"] = 9000 - record["image_id"]
        record["category_id"] = 500 - record["category_id"]
    file = write_results(tmp_path / "others", content, found)
    convert(SAMPLE, tmp_path / "data", format, "link")
    with pytest.warns(UserWarning, match="its classes are in another order"):
        stats = evaluate_results(file, tmp_path / "data").stats
    if format == "coco":
        assert stats == expected
    else:  # which have no crowd regions, or all of them as difficult objects
        assert stats["AP"] == pytest.approx(expected["AP"], abs=0.05)


def test_a_part_of_the_pictures(tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    content["images"] = content["images"][:5]
    shown = {image["id"] for image in content["images"]}
    found = [d for d in guesses(content, 0) if d["image_id"] in shown]
    file = write_results(tmp_path / "results", content, found)
    few = evaluate_results(file, SAMPLE)
    assert (few.images, few.images_in_file) == (5, 25)
    # A picture that the split lacks is left out, and the numbers stay.
    content["images"].append({"id": 10**6, "file_name": "strange.jpg"})
    found.append({**found[0], "image_id": 10**6, "score": 1.0})
    file = write_results(tmp_path / "more", content, found)
    with pytest.warns(UserWarning, match="1 of 6 pictures are not in .* left out: strange.jpg"):
        more = evaluate_results(file, SAMPLE)
    assert (more.images, more.stats) == (5, few.stats)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    file = write_results(tmp_path / "results", content, guesses(content, 0))
    main(["eval", "--results", str(file), "--data", str(SAMPLE), "--split", "val"])
    printed = capsys.readouterr().out
    assert f"{evaluate_results(file, SAMPLE).stats['AP']:.3f}" in printed
    assert "on val" in printed


def test_refused(tmp_path: Path, refused) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    found = guesses(content, 0)
    file = write_results(tmp_path / "good", content, found)
    command = ["eval", "--data", str(SAMPLE)]
    assert "expected --checkpoint or --results, got none" in refused(command)
    both = [*command, "--results", str(file), "--checkpoint", "best.ckpt"]
    assert "expected --checkpoint or --results, got both" in refused(both)
    command += ["--results"]
    for image in content["images"]:
        image["file_name"] = f"strange{image['file_name']}"
    file = write_results(tmp_path / "picture", content, found)
    assert "none of its 25 is among them, such as strange" in refused([*command, str(file)])
    content = json.loads((SAMPLE / "val.json").read_text())
    content["categories"][0]["name"] = "strange"
    file = write_results(tmp_path / "class", content, found)
    assert "strange is only in" in refused([*command, str(file)])
    (file.parent / "images.json").unlink()
    file.write_text(json.dumps([{**found[0], "image_id": 10**9}]))
    assert f"{file}: row 0: expected the image ids of" in refused([*command, str(file)])


def test_dropping_other_classes(tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    gone = content["categories"].pop()["id"]
    found = [d for d in guesses(content, 0) if d["category_id"] != gone]
    file = write_results(tmp_path / "results", content, found)
    with pytest.raises(ValueError, match="only in"):
        evaluate_results(file, SAMPLE)
    metrics = evaluate_results(file, SAMPLE, drop_other_classes=True)
    assert len(metrics.per_class) == len(content["categories"])


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    """Pictures of two folders must not be counted as one picture of the data set."""
    content = json.loads((SAMPLE / "val.json").read_text())
    first = content["images"][0]
    images = [{**first, "id": i, "file_name": f"{i}/{first['file_name']}"} for i in (1, 2)]
    file = write_results(tmp_path / "results", {**content, "images": images}, [])
    with pytest.raises(ValueError, match=r"but 1/119.jpg and 2/119.jpg are both"):
        evaluate_results(file, SAMPLE)
