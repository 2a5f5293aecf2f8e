# SPDX-License-Identifier: BSD-3-Clause
"""Exported detectors find what the model finds, without the model's code and without fastdet."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fastdet.deploy.export import export_detector
from fastdet.models import MODELS
from tests.deploy.conftest import OnnxFile
from tests.deploy.detectors import (
    CLASSES,
    CONVERTED,
    SEVERAL,
    SIZE,
    assert_same,
    detect,
    detector,
    pixels,
)
from tests.deploy.runtimes import RUNTIMES
from tests.models.scenes import small_model


def slow(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name", ["retinanet", *slow(sorted({*MODELS, *CONVERTED} - {"retinanet"}))]
)
def test_onnx_finds_what_the_model_finds(name: str, onnx_file: OnnxFile) -> None:
    model, path = onnx_file(name)
    for images, sizes in (SEVERAL, pixels((81, 128))):
        expected = detect(model, images, sizes)
        for run in RUNTIMES.values():
            found = run(path, {"images": images.numpy(), "sizes": sizes.numpy()})
            assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_rows_that_are_not_filled(name: str, onnx_file: OnnxFile) -> None:
    model, path = onnx_file(name, few=True)
    images, sizes = SEVERAL
    expected = detect(model, images, sizes)
    for run in RUNTIMES.values():
        found = run(path, {"images": images.numpy(), "sizes": sizes.numpy()})
        assert_same(found, expected, least=0)


@pytest.mark.parametrize("name", ["retinanet", *slow(sorted({*MODELS} - {"retinanet"}))])
def test_no_constant_is_infinite(name: str, onnx_file: OnnxFile) -> None:
    _, path = onnx_file(name)
    for node in onnx.load(path).graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), node.op_type
    for constant, values in constants(path):
        assert np.isfinite(values).all(), constant


def test_an_onnx_file_has_the_lowest_version_of_the_format(onnx_file: OnnxFile) -> None:
    model = onnx.load(onnx_file("retinanet")[1])
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


def constants(path: Path) -> Iterator[tuple[str, Any]]:
    """The numbers in a file: initialisers, and attributes of nodes."""
    graph = onnx.load(path).graph
    for tensor in graph.initializer:
        yield tensor.name, onnx.numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield node.name, onnx.numpy_helper.to_array(value)
            elif attribute.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
                yield node.name, value


WITHOUT_THE_CODE = """
import json, sys
sys.modules["fastdet.models"] = sys.modules["fastdet.deploy.export"] = None
import torch, fastdet.ops
extra = {"metadata.json": ""}
package = torch.export.load(sys.argv[1], extra_files=extra).module()
found = package(*torch.load(sys.argv[2]))
torch.save(found, sys.argv[3])
assert not {"timm", "torchvision", "lightning"} & set(sys.modules)
print(extra["metadata.json"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_package_runs_without_the_models_code(name: str, tmp_path: Path) -> None:
    model = detector(name)
    export_detector(model, tmp_path / "detector.pt2", SIZE, batch_size=2, classes=CLASSES)
    images, sizes = pixels((96, 110), (80, 128))
    torch.save((images, sizes), tmp_path / "inputs")
    files = [str(tmp_path / file) for file in ("detector.pt2", "inputs", "outputs")]
    run = [sys.executable, "-c", WITHOUT_THE_CODE, *files]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "outputs")
    assert_same({key: rows.numpy() for key, rows in found.items()}, detect(model, images, sizes))
    about = json.loads(result.stdout)
    assert about["classes"] == CLASSES
    assert about["image_size"] == list(SIZE)


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
