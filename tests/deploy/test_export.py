# SPDX-License-Identifier: BSD-3-Clause
"""Exported detectors find what the model finds, without the model's code and without fastdet."""

import copy
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from fastdet.deploy.export import export_detector
from fastdet.engine.fused import unfused
from fastdet.models import MODELS, Batch, Detections, Detector, from_torchvision
from tests.deploy.runtimes import RUNTIMES, Arrays
from tests.models.scenes import named, small_model
from tests.models.test_torchvision_weights import MODELS as TORCHVISION_MODELS
from tests.models.test_torchvision_weights import picture, with_detections

SIZE = (96, 128)
CLASSES = ["background", "cat", "dog", "bird"]
CONVERTED = ("faster_rcnn_of_parts", "retinanet_of_parts", "fcos_of_parts")


def detector(name: str) -> Detector:
    """In eval mode, with scores that are far enough apart not to change places by rounding."""
    return copy.deepcopy(_made(name))


@functools.cache
def _made(name: str) -> Detector:
    torch.manual_seed(0)
    if name in MODELS:
        model = with_detections(small_model(name))
        if name == "faster_rcnn":
            model.roi_heads.score_thresh = 0.3
        return model
    model = from_torchvision(with_detections(TORCHVISION_MODELS[name]()))
    model.border = dataclasses.replace(model.border, size_divisor=32)
    return model


def pixels(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pictures in the upper left of SIZE; what lies beyond them must not matter."""
    images = torch.rand(len(sizes), 3, *SIZE, generator=torch.Generator().manual_seed(5))
    for i, (height, width) in enumerate(sizes):
        images[i, :, :height, :width] = picture(height, width, seed=10 + i)
    return images, torch.tensor(sizes)


def detect(model: Detector, images: Tensor, sizes: Tensor) -> Detections:
    """By the model itself, on images that it has padded."""
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (model.border.image_mean, model.border.image_std)
    )
    padded = torch.zeros(images.shape).contiguous(memory_format=torch.channels_last)
    for own, image, (height, width) in zip(padded, images, sizes.tolist(), strict=True):
        own[:, :height, :width] = (image[:, :height, :width] - mean) / std
    none = torch.zeros(len(images), 8, dtype=torch.int64)
    with torch.no_grad(), unfused():
        return model.detect(Batch(padded, sizes, torch.zeros(len(images), 8, 4), none, none[:, 0]))


def run_onnx(path: Path, images: Tensor, sizes: Tensor, runtime: str = "onnxruntime") -> Arrays:
    return RUNTIMES[runtime](path, {"images": images.numpy(), "sizes": sizes.numpy()})


def assert_same(found: Arrays, expected: Detections, least: int = 4) -> None:
    """The same detections; those whose scores are nearer than rounding may change places."""
    wanted = {name: rows.numpy() for name, rows in named(expected).items()}
    counts = wanted["counts"].tolist()
    assert found["counts"].tolist() == counts
    assert min(counts) >= least
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=3e-5, rtol=0)
    for i, count in enumerate(counts):
        assert not found["boxes"][i, count:].any()
        if not count:
            continue
        ours, theirs = (
            {name: detections[name][i, :count] for name in ("boxes", "scores", "labels")}
            for detections in (found, wanted)
        )
        off = abs(ours["boxes"][:, None] - theirs["boxes"]).max(axis=2) / 1e-3  # (K, K)
        off = np.maximum(off, abs(ours["scores"][:, None] - theirs["scores"]) / 3e-5)
        off[ours["labels"][:, None] != theirs["labels"]] = np.inf
        assert off.min(axis=0).max() < 1
        assert off.min(axis=1).max() < 1
        if "masks" in wanted:
            masks = wanted["masks"][i, off.argmin(axis=1)]
            np.testing.assert_allclose(found["masks"][i, :count], masks, atol=1e-3, rtol=0)


OnnxFile = Callable[[str], tuple[Detector, Path]]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    """A model by name, and its file for any number of images. Do not change them."""

    @functools.cache
    def onnx_file(name: str) -> tuple[Detector, Path]:
        model, path = detector(name), tmp_path_factory.mktemp(name) / "detector.onnx"
        export_detector(model, path, SIZE, batch_size=None)
        return model, path

    return onnx_file


def slow(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name", ["retinanet", *slow(sorted({*MODELS, *CONVERTED} - {"retinanet"}))]
)
def test_onnx_finds_what_the_model_finds(name: str, onnx_file: OnnxFile) -> None:
    model, path = onnx_file(name)
    for sizes in ([(96, 128), (70, 101), (96, 50)], [(81, 128)]):
        images, heights = pixels(*sizes)
        found = run_onnx(path, images, heights)
        assert_same(found, detect(model, images, heights))


def find_few(model: Detector, images: Tensor, sizes: Tensor) -> Detections:
    """Raises the threshold until one image has no detection and no image fills the rows."""
    part: Any = model.roi_heads if hasattr(model, "roi_heads") else model
    scores = detect(model, images, sizes).scores
    weakest = float(scores[:, 0].min())
    part.score_thresh = (weakest + float(scores[scores > weakest].min())) / 2
    found = detect(model, images, sizes)
    counts = found.counts.tolist()
    assert min(counts) == 0
    assert 0 < max(counts) < found.scores.shape[1]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_rows_that_are_not_filled(name: str, tmp_path: Path) -> None:
    model = detector(name)
    images, sizes = pixels((96, 128), (70, 101), (96, 50))
    expected = find_few(model, images, sizes)
    export_detector(model, tmp_path / "detector.onnx", SIZE, batch_size=None)
    for runtime in RUNTIMES:
        found = run_onnx(tmp_path / "detector.onnx", images, sizes, runtime)
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
