# SPDX-License-Identifier: BSD-3-Clause
"""Runs an ONNX file in each runtime that the tests know, in float32 on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
