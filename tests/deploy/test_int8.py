# SPDX-License-Identifier: BSD-3-Clause
"""Files in 8-bit integers find what the float32 file finds, nearly."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from fastdet.data import read_image
from fastdet.deploy.export import metadata
from fastdet.deploy.int8 import export_int8, quantize
from fastdet.deploy.onnx_pictures import OnnxDetector
from tests.deploy.conftest import OnnxFile
from tests.deploy.detectors import CLASSES, pixels

SIZES = [(96, 128), (70, 101), (96, 50), (90, 120)]


@pytest.fixture
def float32(onnx_file: OnnxFile) -> Path:
    return onnx_file("retinanet", few=True)[1]


@pytest.fixture
def data(float32: Path, tmp_path: Path) -> Path:
    """Pictures, whose objects are what the float32 file finds: its AP is 1."""
    folder = write_pictures(tmp_path / "data")
    run, images, annotations = OnnxDetector(float32), [], []
    for number, file in enumerate(sorted((folder / "images").iterdir()), 1):
        picture = read_image(file)
        record = {"height": picture.shape[1], "width": picture.shape[2]}
        images.append({"id": number, "file_name": file.name, **record})
        found = run.detect(picture)
        for box, label in zip(found["boxes"], found["labels"], strict=True):
            if label:
                annotations.append(annotation(len(annotations) + 1, number, box, int(label)))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(CLASSES) if i],
    }
    assert len(annotations) > 8
    (folder / "val.json").write_text(json.dumps(content))
    return folder


def write_pictures(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    images, _ = pixels(*SIZES)
    for i, (height, width) in enumerate(SIZES):
        pixel = (images[i, :, :height, :width].permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixel).save(folder / "images" / f"{i}.png")
    return folder


def annotation(number: int, image: int, box: np.ndarray, label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    sides = [x2 - x1, y2 - y1]
    about = {"id": number, "image_id": image, "category_id": 10 * label, "iscrowd": 0}
    return {**about, "bbox": [x1, y1, *sides], "area": sides[0] * sides[1]}


@pytest.mark.slow
def test_convolutions_alone_are_quantised(float32: Path, data: Path, tmp_path: Path) -> None:
    accuracy = quantize(float32, tmp_path / "int8.onnx", data)
    assert accuracy is not None
    assert accuracy.images == len(SIZES)
    assert accuracy.before > 0.99
    assert accuracy.after > 0.3  # these weights are random, and every score is near the threshold
    before, after = onnx.load(float32), onnx.load(tmp_path / "int8.onnx")
    assert metadata(tmp_path / "int8.onnx") == metadata(float32)
    assert (after.ir_version, after.opset_import) == (before.ir_version, before.opset_import)
    onnx.checker.check_model(after)
    assert quantised_for_others(after.graph) == []
    size = (tmp_path / "int8.onnx").stat().st_size
    assert size < 0.4 * float32.stat().st_size


def quantised_for_others(graph: Any) -> list[str]:
    """Values that are quantised although no convolution makes or reads them."""
    maker = {name: node.op_type for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {name: [] for name in maker}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    quantised = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) > 50
    return [
        node.input[0]
        for node in quantised
        if maker.get(node.input[0]) != "Conv"
        and not any(
            reader.op_type == "Conv"
            for again in readers[node.output[0]]
            for reader in readers[again.output[0]]
        )
    ]


@pytest.mark.slow
def test_pictures_alone_calibrate_a_file_without_suppression(
    candidates_file: OnnxFile, tmp_path: Path
) -> None:
    pictures, path = write_pictures(tmp_path / "data"), tmp_path / "int8.onnx"
    _, source = candidates_file("fcos")
    assert export_int8(lambda target: shutil.copy(source, target), path, pictures) is None
    assert "suppression" in metadata(path)
    found = OnnxDetector(path).detect(read_image(pictures / "images" / "1.png"))
    assert len(found["boxes"]) > 3
    assert found["boxes"][:, 2].max() <= 101


@pytest.mark.slow
def test_other_classes_are_refused(float32: Path, data: Path, tmp_path: Path) -> None:
    content = (data / "val.json").read_text().replace('"bird"', '"cow"')
    (data / "val.json").write_text(content)
    with pytest.raises(ValueError, match=r"detector\.onnx has cat, dog, bird"):
        quantize(float32, tmp_path / "int8.onnx", data)
    assert not (tmp_path / "int8.onnx").exists()
