# SPDX-License-Identifier: BSD-3-Clause
"""The command line from end to end, and its messages where a package is missing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import lightning
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fastdet.cli import COMMANDS, main
from fastdet.data import write_shapes
from fastdet.models import MODELS
from fastdet.training.options import ModelName


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=4, size=64)


def run_without(packages: list[str], command: str) -> subprocess.CompletedProcess[str]:
    blocked = ", ".join(f"{name}=None" for name in packages)
    code = (
        f"import sys; sys.modules.update({blocked}); "
        f"from fastdet.cli import main; main({command.split()!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
def test_train_resume_evaluate_predict(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = f"--data {shapes} --out {out} --backbone resnet18 --min-size 64 --max-size 64"
    options += " --fpn-channels 16 --batch-size 4 --model retinanet"
    main(f"train {options} --epochs 1".split())
    main(f"train {options} --epochs 2 --resume".split())
    printed = capsys.readouterr().out
    assert "epoch 1/1" in printed
    assert "epoch 2/2" in printed
    assert "circle" in printed

    main(f"describe --checkpoint {out / 'best.ckpt'} --image-size 64 64".split())
    assert "RetinaNet, one image of 64 x 64" in capsys.readouterr().out

    main(f"eval --checkpoint {out / 'best.ckpt'} --data {shapes}".split())
    assert "AP, IoU 0.50" in capsys.readouterr().out

    found = tmp_path / "found"
    main(
        f"predict --checkpoint {out / 'last.ckpt'} --images {shapes / 'images'} --out {found} "
        "--score-threshold 0.01".split()
    )
    results = json.loads((found / "detections.json").read_text())
    records = json.loads((found / "images.json").read_text())
    assert len(records["images"]) == 12
    assert {c["name"] for c in records["categories"]} >= {"circle", "star"}
    assert {r["image_id"] for r in results} <= {r["id"] for r in records["images"]}
    assert Image.open(found / "val_00000.jpg").size == (384, 384)

    main(f"export --checkpoint {out / 'last.ckpt'} --out {out}/it.onnx --image-size 64 96".split())
    assert "RetinaNet of 7 classes" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out / "it.onnx")
    assert session.get_inputs()[0].shape == [1, 3, 64, 96]
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"])[1] == "circle"


def test_predict_writes_and_draws_masks(shapes: Path, tmp_path: Path) -> None:
    from fastdet.evaluation.pictures import class_colour
    from fastdet.prediction import predict
    from fastdet.training.detector_module import DetectorModule

    torch.manual_seed(0)
    numbers = {"fpn_channels": 8, "min_size": 64, "max_size": 64, "box_score_thresh": 0.0}
    module = DetectorModule("mask_rcnn", "resnet18", ["background", "any"], [7], numbers)
    module.model.roi_heads.mask_predictor.mask_fcn_logits.bias.data.fill_(20)  # all inside
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    picture = shapes / "images" / "val_00000.png"
    assert predict(tmp_path / "any.ckpt", [picture], tmp_path, 0.0) > 5
    for result in json.loads((tmp_path / "detections.json").read_text()):
        x, y, width, height = result["bbox"]
        assert result["segmentation"]["size"] == [64, 64]
        if min(width, height) > 4:
            box = coco_mask.toBbox(result["segmentation"])
            assert abs(box - [x, y, width, height]).max() <= 2.5
    drawn = np.asarray(Image.open(tmp_path / "val_00000.jpg")).reshape(-1, 3).mean(0)
    before = np.asarray(Image.open(picture)).reshape(-1, 3).mean(0)
    towards = np.array(class_colour(1)) - before
    assert float((drawn - before) @ towards) > 0.2 * float(towards @ towards)


def test_predict_takes_ids_from_annotations(shapes: Path, tmp_path: Path) -> None:
    from fastdet.prediction import image_records

    content = json.loads((shapes / "val.json").read_text())
    for image in content["images"]:
        image["id"] += 500
    (tmp_path / "val.json").write_text(json.dumps(content))
    file = shapes / "images" / "val_00002.png"
    assert [r["id"] for r in image_records([file], tmp_path / "val.json")] == [503]
    assert [r["id"] for r in image_records([file], None)] == [1]
    with pytest.raises(ValueError, match=r"no image named nothing\.png"):
        image_records([Path("nothing.png")], tmp_path / "val.json")


def test_detections_below_the_threshold_are_left_out() -> None:
    from fastdet.prediction import detect

    found = {
        "boxes": torch.arange(12.0).view(3, 4),
        "labels": torch.tensor([1, 2, 3]),
        "scores": torch.tensor([0.9, 0.5, 0.4]),
    }
    module = SimpleNamespace(model=lambda images: [found], device="cpu")
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    (kept,) = detect(module, [image], 0.5)  # type: ignore[arg-type]
    assert kept["labels"].tolist() == [1, 2]
    assert kept["boxes"].shape == (2, 4)


def test_predict_refuses_pictures_that_would_overwrite_each_other(tmp_path: Path) -> None:
    from fastdet.prediction import picture_files

    for name in ("a.png", "b.txt", "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png"):
        picture_files([tmp_path])
    assert picture_files([tmp_path / "a.png"]) == [tmp_path / "a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture"):
        picture_files([tmp_path / "empty"])


@pytest.mark.parametrize("model", MODELS)
def test_describe(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"--model {model} --backbone resnet18 --image-size 64 96 --fpn-channels 16"
    main(f"describe {options}".split())
    printed = capsys.readouterr().out
    assert f"{model.replace('_', '')}, one image of 64 x 96" in printed.lower()
    assert "backbone.fpn" in printed


def test_the_choice_of_models_is_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(get_args(ModelName)) == set(MODELS)
    with pytest.raises(SystemExit):
        main(["describe", "--model", "yolo"])
    assert "faster_rcnn" in capsys.readouterr().err


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"fastdet: .*no split"):
        main(f"train --data {tmp_path} --out {tmp_path / 'o'}".split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: fastdet" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    printed = capsys.readouterr().out
    for text in ("fastdet", "torch", "CPU", "CUDA"):
        assert text in printed


def test_info_without_the_train_extra() -> None:
    result = run_without(["tyro", "rich", "lightning", "torchvision", "timm"], "info")
    assert result.returncode == 0, result.stderr
    assert "torch: " in result.stdout


@pytest.mark.parametrize("missing", ["tyro", "lightning"])
def test_other_commands_name_the_extra(missing: str) -> None:
    result = run_without([missing], "train --data d --out o")
    assert result.returncode == 1
    assert 'pip install "fastdet[train]"' in result.stderr
    assert "Traceback" not in result.stderr
