# SPDX-License-Identifier: BSD-3-Clause
"""An ONNX file: its results in each runtime that the tests know, in float32 on the CPU.

A runtime keeps the last file that it has compiled, by its path: do not write another file there.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

Arrays = dict[str, np.ndarray[Any, Any]]


@functools.lru_cache(maxsize=1)
def in_onnxruntime(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_onnxruntime(path: Path, feed: Arrays) -> Arrays:
    session = in_onnxruntime(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=1)
def in_openvino(path: Path) -> Any:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run_openvino(path: Path, feed: Arrays) -> Arrays:
    model = in_openvino(path)
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
