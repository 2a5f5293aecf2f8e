# SPDX-License-Identifier: BSD-3-Clause
"""Exported detectors find what the model finds, without the model's code and without fastdet."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fastdet.deploy.export import export_detector
from tests.deploy.conftest import OnnxFile
from tests.deploy.detectors import (
    CLASSES,
    CONVERTED,
    SEVERAL,
    SIZE,
    assert_same,
    detect,
    pixels,
)
from tests.deploy.runtimes import RUNTIMES, constants
from tests.models.scenes import small_model


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERTED)
def test_onnx_finds_what_the_model_finds(name: str, onnx_file: OnnxFile) -> None:
    model, path = onnx_file(name)
    for images, sizes in (SEVERAL, pixels((81, 128))):
        expected = detect(model, images, sizes)
        for run in RUNTIMES.values():
            found = run(path, {"images": images.numpy(), "sizes": sizes.numpy()})
            assert_same(found, expected)


@pytest.mark.slow
def test_rows_that_are_not_filled(onnx_file: OnnxFile) -> None:
    model, path = onnx_file("retinanet", few=True)
    for images, sizes in (SEVERAL, pixels((81, 128))):
        expected = detect(model, images, sizes)
        for run in RUNTIMES.values():
            found = run(path, {"images": images.numpy(), "sizes": sizes.numpy()})
            assert_same(found, expected, least=0)


@pytest.mark.slow
def test_no_constant_is_infinite(onnx_file: OnnxFile) -> None:
    _, path = onnx_file("retinanet", few=True)
    for node in onnx.load(path).graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), node.op_type
    for constant, values in constants(path):
        assert np.isfinite(values).all(), constant


@pytest.mark.slow
def test_an_onnx_file_has_the_lowest_version_of_the_format(onnx_file: OnnxFile) -> None:
    model = onnx.load(onnx_file("retinanet", few=True)[1])
    (opset,) = model.opset_import
    versions = {
        onnx.defs.get_schema(node.op_type, opset.version, node.domain).since_version
        for node in model.graph.node
    }
    assert opset.version == max(versions)
    assert model.ir_version == onnx.helper.find_min_ir_version_for([opset]) <= 9
    # These came with version 10. They also held the paths of this machine's source files.
    parts = (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output)
    assert not any(part.metadata_props for part in parts)
    assert str(Path(torch.__file__).parent).encode() not in model.SerializeToString()
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"path": "detector.pt"}, r"ends in \.pt2 or \.onnx, got detector\.pt"),
        ({"image_size": (96, 120)}, r"multiples of 32 \(size_divisor\), got \(96, 120\)"),
        ({"image_size": (96, 120)}, r"the next ones are 96 128$"),
        ({"image_size": (0, 96)}, "multiples of 32.*the next ones are 32 96$"),
        ({"classes": CLASSES[:3]}, "classes: expected 4 names, got 3"),
    ],
)
def test_what_cannot_be_exported(numbers: dict[str, Any], message: str) -> None:
    options = {"path": "detector.onnx", "image_size": SIZE} | numbers
    with pytest.raises(ValueError, match=message):
        export_detector(small_model("retinanet"), **options)


def test_without_onnx_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fastdet.deploy.onnx_ops", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fastdet\[export\]"'):
        export_detector(small_model("retinanet"), tmp_path / "detector.onnx", (32, 32))
    assert list(tmp_path.iterdir()) == []
