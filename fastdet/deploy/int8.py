# SPDX-License-Identifier: BSD-3-Clause
"""An exported ONNX file in 8-bit integers, by ONNX Runtime's static quantisation.

Convolutions and matrix products alone are quantised, with a scale for each output channel. The
arithmetic of boxes and scores stays in float32: in 8 bits a coordinate would have 256 values. For
a checkpoint that fastdet's own layers run in integers see `quantized_checkpoint.py`.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from fastdet.data import Classes
from fastdet.deploy.calibration import Accuracy, calibration_data
from fastdet.deploy.metadata import metadata
from fastdet.deploy.onnx_pictures import Arrays, OnnxDetector, coco_metrics
from fastdet.files import replacing

OP_TYPES = ["Conv", "Gemm"]


def export_int8(write: Callable[[Path], None], target: Path, calibration: Path) -> Accuracy | None:
    """`quantize` of the file that `write` writes, which is not kept.

    Raises:
        ValueError: target's suffix, before anything is written; else as `quantize`.
        FileNotFoundError: as `quantize`.
    """
    _check(target, calibration)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / target.name
        write(source)
        return quantize(source, target, calibration)


def quantize(source: Path, target: Path, calibration: Path) -> Accuracy | None:
    """Writes an exported .onnx file with convolutions in 8-bit integers.

    Args:
        source: a file of `export_detector` or `export_candidates`, with classes.
        target: the new file, .onnx; it is replaced whole.
        calibration: a data set, or a folder of pictures; see `calibration_data`.

    Returns:
        The accuracy on the val split; None: there is none.

    Raises:
        ValueError: target's suffix; a file that fastdet did not write; other classes in the data.
        FileNotFoundError: no source; no picture.
    """
    _check(target, calibration)
    names = metadata(source)["classes"]
    if names is None:
        raise ValueError(f"{source}: expected a file with the names of the classes")
    classes = Classes(names, source.name)
    pictures, val = calibration_data(calibration, classes)
    with replacing(target) as temporary, tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            temporary,
            _Reader(OnnxDetector(source), pictures),
            op_types_to_quantize=OP_TYPES,
            per_channel=True,
        )
        _describe_as(source, temporary)
    if val is None:
        return None
    metrics = (coco_metrics(OnnxDetector(path), val) for path in (source, target))
    before, after = (float(found.stats["AP"]) for found in metrics)
    return Accuracy(before, after, len(val))


class _Reader(CalibrationDataReader):
    """Pictures as ONNX Runtime asks for them."""

    def __init__(self, detector: OnnxDetector, pictures: Iterator[Tensor]) -> None:
        self.detector = detector
        self.pictures = pictures

    def get_next(self) -> Arrays | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        picture = next(self.pictures, None)
        return None if picture is None else self.detector.inputs(picture)


def _check(target: Path, calibration: Path) -> None:
    if target.suffix != ".onnx":
        raise ValueError(f"int8: expected an output that ends in .onnx, got {target.name}")
    if not calibration.exists():
        raise FileNotFoundError(f"int8: {calibration} is no folder or file")


def _describe_as(source: Path, path: Path) -> None:
    """Gives the file at `path` the metadata and the version of the format of `source`."""
    model, about = onnx.load(path), metadata(source)
    model.ir_version = onnx.load(source).ir_version
    onnx.helper.set_model_props(model, {name: json.dumps(about[name]) for name in about})
    path.write_bytes(model.SerializeToString())
