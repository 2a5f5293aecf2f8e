# SPDX-License-Identifier: BSD-3-Clause
"""The options of reading reach the data of training and evaluation, from the command line too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdet.cli import main
from fastdet.training.data_module import DetectionDataModule
from fastdet.training.options import PictureOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures outside the image folder, of 12 bits, upside down; val has another class."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    turn = Image.Exif()
    turn[0x0112] = 3  # upside down
    samples = np.zeros((64, 64), np.uint16)
    samples[:32] = 4095
    Image.fromarray(samples).save(tmp_path / "outside.png", exif=turn)
    box = {"bbox": [8, 8, 30, 20], "area": 600, "iscrowd": 0}
    for split, names in (("train", ["sun"]), ("val", ["moon", "sun"])):
        content = {
            "images": [
                {"id": i, "file_name": "../../outside.png", "width": None, "height": None}
                for i in range(4)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 4 * c + i + 1, "image_id": i, "category_id": c, **box}
                for c in range(len(names))
                for i in range(4)
            ],
        }
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path / "data"


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("bit_depth", [12, 16])
def test_both_splits_are_read_as_the_options_say(folder: Path, exif, bit_depth: int) -> None:
    options = {"pictures": PictureOptions(exif, bit_depth), "files_anywhere": True}
    with pytest.raises(ValueError, match="leads out of the image folder"):
        DetectionDataModule(folder, 2)
    with pytest.raises(ValueError, match=r"moon is only in .*val\.json"):
        DetectionDataModule(folder, 2, **options)
    data = DetectionDataModule(folder, 2, drop_other_classes=True, **options)
    assert data.training is not None
    assert data.classes == data.training.classes == ["background", "sun"]
    assert data.validation.category_ids == [1]
    assert len(data.validation.target(0)["boxes"]) == 1
    data.training.transforms = data.validation.transforms = None
    bright = 4095 >> (bit_depth - 8)
    for dataset in (data.training, data.validation):
        rows = dataset[0][0][0, :, 0].tolist()
        expected = [bright] * 32 + [0] * 32
        assert rows == (expected if exif == "ignore" else expected[::-1])


@pytest.mark.slow
def test_the_command_line_has_the_options(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = ["--drop-other-classes", "--exif", "ignore", "--bit-depth", "12", "--files-anywhere"]
    train = (
        f"train --data {folder} --out {tmp_path / 'run'} --model retinanet --backbone test_resnet "
        "--epochs 1 --batch-size 2 --min-size 64 --max-size 64 --fpn-channels 8 --validate-every 2"
    )
    main([*train.split(), *reading])
    checkpoint = tmp_path / "run" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["classes"][1:] == ["sun"]
    main([*f"eval --checkpoint {checkpoint} --data {folder}".split(), *reading])
    printed = capsys.readouterr().out
    assert "│ sun" in printed
    assert "moon" not in printed
    with pytest.raises(SystemExit) as stop:
        main(f"eval --checkpoint {checkpoint} --data {folder} --files-anywhere".split())
    assert stop.value.code == 2
    assert "moon is only in" in capsys.readouterr().err
