# SPDX-License-Identifier: BSD-3-Clause
"""A file says what it is, and in which size it was trained."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import fastdet
from fastdet.deploy.export import export_detector, metadata
from fastdet.deploy.image_size import training_size
from fastdet.models import Border
from tests.deploy.conftest import OnnxFile
from tests.deploy.detectors import CLASSES
from tests.models.scenes import small_model


@pytest.mark.slow
def test_metadata_of_a_file(tmp_path: Path) -> None:
    model = small_model("fcos", min_size=[64, 96], max_size=100)
    export_detector(model, tmp_path / "it.pt2", classes=CLASSES)
    assert metadata(tmp_path / "it.pt2") == {
        "model": "FCOS",
        "classes": CLASSES,
        "num_classes": 4,
        "image_size": [96, 128],
        "min_size": [64, 96],
        "max_size": 100,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "fastdet": fastdet.__version__,
    }


@pytest.mark.slow
def test_metadata_of_an_onnx_file(onnx_file: OnnxFile) -> None:
    about = metadata(onnx_file("retinanet", few=True)[1])
    assert (about["model"], about["classes"], about["num_classes"]) == ("RetinaNet", CLASSES, 4)
    assert (about["image_size"], about["min_size"], about["max_size"]) == ([96, 128], 96, 140)
    assert about["fastdet"] == fastdet.__version__


@pytest.mark.parametrize("kind", ["text.pt2", "text.onnx", "zip.pt2", "foreign.onnx", "list.onnx"])
def test_other_files_have_none(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    path.write_text("no model")
    if kind == "zip.pt2":
        torch.save([1], path)
    elif kind in ("foreign.onnx", "list.onnx"):
        graph = onnx.helper.make_graph([], "empty", [], [])
        model = onnx.helper.make_model(graph)
        words = {"note": "[1]" if kind == "list.onnx" else "by hand"}
        onnx.helper.set_model_props(model, words)
        onnx.save(model, path)
    with pytest.raises(ValueError, match=rf"{kind}: expected a \.pt2 or \.onnx file that fastdet"):
        metadata(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        metadata(tmp_path / "none.onnx")


def test_metadata_of_a_model_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="path of an exported file"):
        about = metadata(small_model("retinanet"), (96, 128), CLASSES)
    assert about["model"] == "RetinaNet"
    assert about["image_size"] == [96, 128]


def test_without_onnx_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fastdet\[export\]"'):
        metadata(tmp_path / "it.onnx")


@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        ({}, (800, 1344)),
        ({"min_size": (640, 672), "max_size": 700}, (672, 704)),
        ({"min_size": 128, "max_size": 100}, (128, 128)),
        ({"fixed_size": (65, 64), "size_divisor": 64}, (128, 64)),
    ],
)
def test_the_size_of_a_training(numbers: dict[str, Any], size: tuple[int, int]) -> None:
    assert training_size(dataclasses.replace(Border(), **numbers)) == size
