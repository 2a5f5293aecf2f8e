#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# ONNX RoiAlign with mode="max": the largest of four interpolated samples of a map of ones is not 1.
#
# One would expect what mode="avg" does, with a maximum in place of the mean: each sample is
# interpolated from its four neighbours, and the bin takes the largest sample. ONNX Runtime and the
# reference evaluator of the onnx package take the largest of the *weighted neighbours* instead, each
# multiplied by its bilinear weight and never added up. So a constant map of 1 is pooled to less than
# 1, by an amount that depends on where the samples fall. OpenVINO interpolates first and gives 1.
#
# A model that is checked against the reference evaluator passes, and its output changes when it is
# moved from one runtime to the other. ONNX Runtime's warning about it announces the fix for 1.13.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.2.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1

"$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

path = sys.argv[1]
print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, "
      f"openvino {openvino.__version__}")

inputs = {
    "x": np.ones((1, 1, 8, 8), np.float32),
    "rois": np.array([[1.3, 1.3, 5.9, 6.1]], np.float32),
    "batch_indices": np.zeros(1, np.int64),
}


def pooled(mode: str) -> dict[str, np.ndarray]:
    """The four bins of one RoI, by each of the three."""
    node = helper.make_node(
        "RoiAlign", list(inputs), ["y"], mode=mode, output_height=2, output_width=2,
        sampling_ratio=2, spatial_scale=1.0,
    )
    graph = helper.make_graph(
        [node],
        "roi_align",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8]),
            helper.make_tensor_value_info("rois", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("batch_indices", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "onnxruntime": session.run(None, inputs)[0].ravel(),
        "onnx reference": ReferenceEvaluator(model).run(None, inputs)[0].ravel(),
        "openvino": compiled(list(inputs.values()))[0].ravel(),
    }


outputs = {mode: pooled(mode) for mode in ("avg", "max")}
for mode, by_runtime in outputs.items():
    for runtime, bins in by_runtime.items():
        print(f'mode="{mode}" {runtime}: {np.round(bins, 3).tolist()}')

expected = [0.375, 0.495, 0.625, 0.825]
holds = (
    all(np.allclose(bins, 1) for bins in outputs["avg"].values())
    and np.allclose(outputs["max"]["onnxruntime"], expected)
    and np.allclose(outputs["max"]["onnx reference"], expected)
    and np.allclose(outputs["max"]["openvino"], 1)
)
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
