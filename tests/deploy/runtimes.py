# SPDX-License-Identifier: BSD-3-Clause
"""An ONNX file: its results in each runtime that the tests know, in float32 on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

Arrays = dict[str, np.ndarray[Any, Any]]


def run_onnxruntime(path: Path, feed: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))  # type: ignore[arg-type]


def run_openvino(path: Path, feed: Arrays) -> Arrays:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = model(feed)
    return {output.any_name: found[output] for output in model.outputs}


RUNTIMES: dict[str, Callable[[Path, Arrays], Arrays]] = {
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
}


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
