# SPDX-License-Identifier: BSD-3-Clause
"""The commands take every kind of data set: folders, files, and data without splits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastdet.cli import main
from fastdet.data import Classes, open_dataset, write_shapes
from fastdet.deploy.calibration import calibration_data
from fastdet.training.data_module import DetectionDataModule
from fastdet.training.options import TrainOptions
from fastdet.training.train import evaluate, train
from tests.data.formats.trees import write_tree


def write_yolo(coco: Path, out: Path) -> Path:
    """The drawn shapes as Ultralytics would have them."""
    texts = {"data.yaml": "path: .\ntrain: images/train\nval: images/val\nnames:\n"}
    for split in ("train", "val"):
        content = json.loads((coco / f"{split}.json").read_text())
        for image in content["images"]:
            name, width, height = Path(image["file_name"]), image["width"], image["height"]
            target = out / "images" / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(coco / "images" / name, target)
            rows = []
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"] and not annotation["iscrowd"]:
                    x, y, w, h = annotation["bbox"]
                    parts = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                    rows.append(f"{annotation['category_id'] - 1} {' '.join(map(repr, parts))}")
            texts[f"labels/{split}/{name.stem}.txt"] = "\n".join(rows)
    names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
    texts["data.yaml"] += "".join(f"  {i}: {name}\n" for i, name in enumerate(names))
    return write_tree(out, texts)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pictures in several kinds of data sets."""
    tmp = tmp_path_factory.mktemp("kinds")
    shapes = write_shapes(tmp / "shapes", train=6, val=4, size=64)
    yolo = write_yolo(shapes, tmp / "yolo")
    roboflow = tmp / "roboflow"
    for split, folder in (("train", "train"), ("val", "valid")):
        (roboflow / folder).mkdir(parents=True)
        shutil.copy(shapes / f"{split}.json", roboflow / folder / "_annotations.coco.json")
        for picture in sorted((shapes / "images").glob(f"{split}_*")):
            shutil.copy(picture, roboflow / folder)
    whole = tmp / "whole"
    shutil.copytree(shapes / "images", whole / "images")
    shutil.copy(shapes / "train.json", whole / "instances_default.json")
    return {
        "shapes": shapes,
        "yolo": yolo,
        "data.yaml": yolo / "data.yaml",
        "roboflow": roboflow,
        "one file": whole / "instances_default.json",
        "one file in a folder": whole,
    }


@pytest.mark.parametrize("kind", ["yolo", "data.yaml", "roboflow"])
def test_data_modules_of_every_kind_have_the_same_items(
    folders: dict[str, Path], kind: str
) -> None:
    module = DetectionDataModule(folders[kind], 2, workers=0)
    expected = DetectionDataModule(folders["shapes"], 2, workers=0)
    assert module.classes == expected.classes
    assert module.category_ids == expected.category_ids
    for ours, theirs in ((module.training, expected.training), (module.validation, None)):
        theirs = theirs or expected.validation
        assert ours is not None
        assert len(ours) == len(theirs)
        for index in range(len(ours)):
            assert ours.image_path(index).name == theirs.image_path(index).name
            target, other = ours.target(index), theirs.target(index)
            assert target["labels"].tolist() == other["labels"].tolist()
            assert (target["boxes"] - other["boxes"]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["one file", "one file in a folder"])
def test_data_modules_of_data_without_splits(folders: dict[str, Path], kind: str) -> None:
    with pytest.warns(UserWarning, match="5 for train and 1 for val; `fastdet split` writes"):
        module = DetectionDataModule(folders[kind], 2, workers=0)
    assert module.training is not None
    assert not set(module.training.image_ids) & set(module.validation.image_ids)
    before = module.validation.image_ids
    module.read_masks()
    assert module.validation.image_ids == before


@pytest.mark.slow
def test_training_and_evaluation_on_yolo_data(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {"min_size": 64, "max_size": 64, "fpn_channels": 8}
    options = TrainOptions(
        folders["data.yaml"], tmp_path, "fcos", "test_resnet", epochs=1, batch_size=6, **small
    )
    train(options)
    checkpoint = tmp_path / "last.ckpt"
    capsys.readouterr()
    main(f"eval --checkpoint {checkpoint} --data {folders['yolo']} --split val".split())
    assert "on val" in capsys.readouterr().out
    on_yolo = evaluate(checkpoint, folders["yolo"])
    on_coco = evaluate(checkpoint, folders["shapes"])
    assert on_yolo.images == on_coco.images == 4
    assert on_yolo.stats["AR100"] == pytest.approx(on_coco.stats["AR100"], abs=1e-9, nan_ok=True)
    assert on_yolo.stats["AP"] == pytest.approx(on_coco.stats["AP"], abs=1e-9, nan_ok=True)


def test_calibration_takes_every_kind(folders: dict[str, Path], tmp_path: Path) -> None:
    classes = Classes(open_dataset(folders["shapes"], "val").classes, "a checkpoint")
    for kind in ("shapes", "yolo", "data.yaml", "roboflow"):
        pictures, val = calibration_data(folders[kind], classes)
        assert val is not None
        assert len(val) == 4
        assert len(list(pictures)) == 6
    pictures, val = calibration_data(folders["shapes"] / "images", classes)
    assert val is None
    assert len(list(pictures)) == 10


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"data.yaml": "names: ["}, "data.yaml: not a YAML file"),
        ({"data.yaml": "train: no\nval: no\nnames: [a]"}, "train: no such folder or list"),
        ({"pictures/a.txt": ""}, "no data set of a known format: coco, yolo"),
        (
            {"train.json": '{"images":[],"annotations":[],"categories":[]}', "valid.json": "{"},
            "train.json: expected images, got none",
        ),
        (
            {"val.json": "{}", "valid.json": "{}"},
            "both are the split 'val'",
        ),
    ],
)
def test_a_mistake_is_answered_by_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: dict[str, str], message: str
) -> None:
    folder = write_tree(tmp_path / "data", texts)
    with pytest.raises(SystemExit) as stop:
        main(f"train --data {folder} --out {tmp_path}/out".split())
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("fastdet: ")
    assert message in line
