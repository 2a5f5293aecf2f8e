# SPDX-License-Identifier: BSD-3-Clause
"""The warning that a picture is shrunk beyond training, and the side of tiles against it."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdet.cli import main
from fastdet.data import write_shapes
from fastdet.models import Border
from fastdet.predicting.shrinking import auto_tile, shrink_warning
from fastdet.training.anchor_fit import object_scale
from fastdet.training.detector_module import load_detector
from fastdet.training.options import TrainOptions
from fastdet.training.train import train


def module_of(border: Border, scale: float | None) -> Any:
    return SimpleNamespace(model=SimpleNamespace(border=border), object_scale=scale)


@pytest.mark.parametrize(
    ("border", "scale", "tile"),
    [
        (Border(400, 667), 1.0, 400),
        (Border(400, 667), None, 400),
        (Border(800, 1333), 0.2667, 3000),  # trained on large pictures: objects were as small
        (Border((320, 640), 1333), 1.25, 512),
        (Border(800, 600), 1.0, 600),
        (Border(fixed_size=(320, 640)), 1.0, 320),
    ],
)
def test_a_tile_has_the_scale_of_the_training(border, scale, tile) -> None:
    module = module_of(border, scale)
    assert auto_tile(module) == tile
    assert border.scale_of(tile, tile) == pytest.approx(scale or 1.0, rel=1e-3)
    assert shrink_warning(module, "a.jpg", 3 * tile, 3 * tile, tile) is None


def test_what_is_far_beyond_the_training() -> None:
    module = module_of(Border(400, 667), 1.0)
    message = shrink_warning(module, "a.jpg", 2299, 2472, None)
    assert message == (
        "a.jpg: in this picture of 2472 x 2299 pixels objects reach the detector 5.7 times smaller "
        "than in training, and small ones may be lost: --tile auto detects on tiles of 400 pixels"
    )
    assert shrink_warning(module, "a.jpg", 800, 800, None) is None
    assert shrink_warning(module, "a.jpg", 810, 810, None) is not None
    assert shrink_warning(module_of(Border(400, 667), 0.2), "a.jpg", 2299, 2472, None) is None
    older = module_of(Border(400, 667), None)
    assert "than in full size" in (shrink_warning(older, "a.jpg", 2299, 2472, None) or "")


@pytest.mark.slow
def test_a_training_keeps_its_scale(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "shapes", train=4, val=2, size=128)
    run = tmp_path / "run"
    options = TrainOptions(
        data,
        run,
        "fcos",
        "test_resnet",
        epochs=1,
        batch_size=4,
        min_size=64,
        max_size=64,
        fpn_channels=8,
    )
    assert train(options).object_scale == 0.5
    module = load_detector(run / "last.ckpt")
    assert module.object_scale == 0.5
    assert auto_tile(module) == 128
    Image.new("RGB", (300, 280)).save(tmp_path / "large.png")
    Image.new("RGB", (90, 80)).save(tmp_path / "small.png")
    command = f"predict --checkpoint {run}/last.ckpt --images {tmp_path}/*.png --out {tmp_path}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(f"{command}/plain".split())
        (told,) = [str(one.message) for one in caught if "--tile" in str(one.message)]
        assert told.startswith("large.png: in this picture of 300 x 280 pixels objects reach the")
        assert "2.3 times smaller than in training" in told
        assert "--tile auto detects on tiles of 128 pixels" in told
        caught.clear()
        main(f"{command}/tiles --tile auto".split())
        assert not [one for one in caught if "--tile" in str(one.message)]


def test_a_data_set_without_objects_has_no_scale() -> None:
    empty = SimpleNamespace(box_and_image_sizes=lambda: (np.zeros((0, 2)), np.zeros((0, 2))))
    assert object_scale(empty, Border()) is None  # type: ignore[arg-type]
