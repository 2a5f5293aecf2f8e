# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet analyse`, from checkpoints and from files: what it prints, writes and refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

import fastdet.analysing.checkpoints as checkpoints
from fastdet.analysing.analysis import AnalysisOptions
from fastdet.cli import main
from fastdet.data import write_shapes
from tests.data_sets import SAMPLE

Refused = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=1, val=6, size=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A Mask R-CNN without training, which finds something everywhere."""
    from fastdet.training.detector_module import DetectorModule

    torch.manual_seed(0)
    categories = json.loads((shapes / "val.json").read_text())["categories"]
    names = ["background", *(c["name"] for c in categories)]
    numbers = {"fpn_channels": 8, "min_size": 64, "max_size": 64, "representation_size": 16}
    numbers |= {"box_score_thresh": 0.0, "box_detections_per_img": 20, "mask_layers": (8,)}
    ids = [c["id"] for c in categories]
    module = DetectorModule("mask_rcnn", "resnet10t", names, ids, numbers)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    path = tmp_path_factory.mktemp("run") / "any.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """Every object of the split, moved a little, and half of them of the first class."""
    content = json.loads((shapes / "val.json").read_text())
    first = content["categories"][0]["id"]
    rows = [
        {
            "image_id": one["image_id"],
            "category_id": first if number % 2 else one["category_id"],
            "bbox": [one["bbox"][0] + 1, *one["bbox"][1:]],
            "score": 0.9 - 0.01 * (number % 50),
        }
        for number, one in enumerate(content["annotations"])
    ]
    path = tmp_path_factory.mktemp("found") / "results.json"
    path.write_text(json.dumps(rows))
    return path


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "analysis.json").read_text())


def test_a_checkpoint_and_then_its_detections(
    checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(f"analyse {checkpoint} --data {shapes} --out {out} --drawn 2 --weakest 1".split())
    printed = capsys.readouterr().out
    assert "AP at IoU 0.5 that errors cost" in printed
    assert "Average recall of the proposals" in printed
    assert "on 6 pictures with" in printed
    (side,) = read(out)["sides"]
    assert set(side["proposal_recall"]) == {"100", "300", "1000"}
    assert side["proposal_recall"]["1000"]["all"] >= side["proposal_recall"]["100"]["all"]
    assert not (out / "detections.partial.npz").exists()
    again = tmp_path / "again"
    main(f"analyse {out}/detections.json --data {shapes} --out {again}".split())
    other = read(again)["sides"][0]
    assert other["proposal_recall"] is None
    for key in ("stats", "costs", "confusion", "calibration", "wrong_by_image"):
        assert other[key] == side[key]
    page = (out / "analysis.html").read_text()
    assert page.count("<figure style=") == 4  # two worst, two of the weakest class
    assert "Pictures with the most errors" in page
    assert "http" not in page


def test_masks_of_a_checkpoint(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    command = f"analyse {checkpoint} --data {shapes} --drawn 1 --iou-type segm --batch-size 1"
    main(f"{command} --out {tmp_path}/a".split())
    first = json.loads((tmp_path / "a" / "detections.json").read_text())[0]
    assert first["segmentation"]["size"] == [64, 64]
    main(
        f"analyse {tmp_path}/a/detections.json --data {shapes} --iou-type segm --drawn 0 "
        f"--out {tmp_path}/b".split()
    )
    assert read(tmp_path / "b")["sides"][0]["stats"] == read(tmp_path / "a")["sides"][0]["stats"]
    assert "<figure style=" not in (tmp_path / "b" / "analysis.html").read_text()


def test_an_interrupted_run_goes_on(
    checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = f"analyse {checkpoint} --data {shapes} --drawn 0 --batch-size 2 --iou-type segm"
    main(f"{command} --out {whole}".split())
    detect, calls = checkpoints._detect, []

    def stopped(*arguments: Any) -> None:
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        detect(*arguments)

    monkeypatch.setattr(checkpoints, "_detect", stopped)
    with pytest.raises(SystemExit):
        main(f"{command} --out {parts}".split())
    assert (parts / "detections.partial.npz").exists()
    assert not (parts / "detections.json").exists()
    main(f"{command} --out {parts}".split())
    assert calls[3:] == [[4, 5]]
    assert read(parts)["sides"][0]["costs"] == read(whole)["sides"][0]["costs"]
    assert read(parts)["sides"][0]["proposal_recall"] == read(whole)["sides"][0]["proposal_recall"]
    written = [json.loads((out / "detections.json").read_text()) for out in (whole, parts)]
    assert written[0] == written[1]


def test_a_partial_file_of_other_work(
    checkpoint: Path, shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    np.savez(tmp_path / "detections.partial.npz", work=np.array("other"))
    command = f"analyse {checkpoint} --data {shapes} --drawn 0 --out {tmp_path}".split()
    assert "unfinished analysis of another checkpoint or data" in refused(command)
    main([*command, "--overwrite"])
    assert "detections.json exists: analyse it in place" in refused(
        [*command[:-1], str(shutil.copytree(tmp_path, tmp_path / "copy", ignore=_analysis))]
    )


def _analysis(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("analysis") or name == "copy"]


def test_two_files_side_by_side(
    results: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(results.read_text())
    few = tmp_path / "few.json"
    few.write_text(json.dumps(rows[::3]))
    out = tmp_path / "out"
    main(
        f"analyse {few} --data {shapes} --beside {results} --out {out} --resamplings 20 "
        "--drawn 1 --weakest 0".split()
    )
    printed = capsys.readouterr().out
    assert "The second finds" in printed
    assert "20 resamplings of the pictures" in printed
    content = read(out)
    beside = content["beside"]
    gained = len(beside["only_second_annotation_ids"]) - len(beside["only_first_annotation_ids"])
    assert beside["objects_found"]["value"] == gained > 0
    assert [side["name"] for side in content["sides"]] == [
        f"{path.parent.name}/{path.name}" for path in (few, results)
    ]
    page = (out / "analysis.html").read_text()
    assert "the second finds and the first misses" in page
    assert "<span>first</span>" in page


def test_names_and_no_resamplings_stop_nothing(
    results: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class may have any name: it is neither rich's markup nor HTML."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    content = json.loads((data / "val.json").read_text())
    names = ["[/]", "[red]a[/red]", "<script>alert(1)</script>"]
    for category, name in zip(content["categories"], names, strict=False):
        category["name"] = name
    (data / "val.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    main(
        f"analyse {results} --data {data} --beside {results} --out {out} --resamplings 0 "
        "--drawn 0".split()
    )
    printed, page = capsys.readouterr().out, (out / "analysis.html").read_text()
    assert all(f" {category['name']} " in printed for category in content["categories"])
    assert "without resamplings of the pictures it cannot be told from chance" in printed
    assert "-0.000" not in printed
    assert "<script>alert" not in page
    assert "First: What it is (rows)" in page
    assert "Second: What it is (rows)" in page


def test_thresholds_change_what_counts(results: Path, shapes: Path, tmp_path: Path) -> None:
    def side(name: str, options: str) -> dict[str, Any]:
        main(
            f"analyse {results} --data {shapes} --out {tmp_path / name} --drawn 0 {options}".split()
        )
        return read(tmp_path / name)["sides"][0]

    usual = side("usual", "")
    assert usual["score_threshold"] == usual["best_f1"]["threshold"]
    strict = side("strict", "--iou-threshold 0.95")
    assert strict["AP_at_iou_threshold"] < usual["AP_at_iou_threshold"]
    assert strict["stats"] == usual["stats"]
    high = side("high", "--score-threshold 0.85")
    unfound = [np.array(one["confusion"]["matrix"])[:, -1].sum() for one in (high, usual)]
    assert unfound[0] > unfound[1]
    assert high["score_threshold"] == 0.85
    loose = side("loose", "--iou-threshold 0.95 --background-iou 0.9")
    assert loose["errors"]["localisation"] < strict["errors"]["localisation"]
    few = side("few", "--max-detections 11 --bins 3")
    assert len(few["calibration"]["counts"]) == 3
    assert len(read(tmp_path / "few")["sentences"]) > 4
    assert len(usual["calibration"]["counts"]) == 10


def test_a_split_without_pictures(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(SAMPLE / "val.json", data / "val.json")
    (tmp_path / "none.json").write_text("[]")
    main(f"analyse {tmp_path}/none.json --data {data} --out {tmp_path}/out --drawn 1".split())
    (side,) = read(tmp_path / "out")["sides"]
    assert side["stats"]["AP"] == 0
    assert side["errors"]["missed"] > 0
    assert "<figure style=" in (tmp_path / "out" / "analysis.html").read_text()  # a grey picture


def test_results_of_predict(
    checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    picture = sorted((shapes / "images").glob("val*"))[1]
    main(
        f"predict --checkpoint {checkpoint} --images {picture} --out {found} --score-threshold 0"
        "".split()
    )
    main(f"analyse {found}/detections.json --data {shapes} --out {tmp_path}/o --drawn 0".split())
    assert "1 of 6 pictures were looked at" in capsys.readouterr().out
    assert read(tmp_path / "o")["images"] == 1


def test_classes_that_a_checkpoint_lacks(
    checkpoint: Path, shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    content = json.loads((data / "val.json").read_text())
    content["categories"].append({"id": 99, "name": "unknown"})
    content["annotations"].append({**content["annotations"][0], "id": 999, "category_id": 99})
    (data / "val.json").write_text(json.dumps(content))
    command = f"analyse {checkpoint} --data {data} --drawn 0 --out {tmp_path}/out".split()
    assert "unknown is only in" in refused(command)
    main([*command, "--drop-other-classes", "--workers", "0"])
    assert read(tmp_path / "out")["objects"] == len(content["annotations"]) - 1


def test_refusals(results: Path, shapes: Path, tmp_path: Path, refused: Refused) -> None:
    def says(options: str, path: Path = results) -> str:
        return refused(f"analyse {path} --data {shapes} --out {tmp_path} {options}".split())

    assert "no such checkpoint or COCO results file" in says("", tmp_path / "absent.ckpt")
    assert "no split 'test'" in says("--split test")
    assert "iou_threshold: expected one of 0.5, 0.55" in says("--iou-threshold 0.52")
    assert "background_iou: expected a number above 0 and below" in says("--background-iou 0.5")
    assert "score_threshold: expected a finite number" in says("--score-threshold nan")
    assert "max_detections: expected a number from 11 on" in says("--max-detections 10")
    assert "bins: expected a number from 1 on, got 0" in says("--bins 0")
    assert "resamplings: expected a number from 0 on" in says("--resamplings -1")
    assert "drawn: expected a number from 0 on" in says("--drawn -1")
    assert "weakest: expected a number from 0 on" in says("--weakest -1")
    assert "batch_size: expected a number from 1 on" in says("--batch-size 0")
    (tmp_path / "analysis.json").touch()
    assert "analysis.json exists: give --overwrite" in says("")
    with pytest.raises(ValueError, match="iou_type: expected bbox or segm, got box"):
        AnalysisOptions(iou_type="box").check()  # pyright: ignore[reportArgumentType]
