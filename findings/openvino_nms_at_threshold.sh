#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# OpenVINO's NonMaxSuppression on the CPU removes a box whose IoU is equal to the threshold.
#
# Greedy suppression is written with a strict comparison nearly everywhere: a box goes when its IoU
# with a kept box is *above* the threshold. ONNX Runtime and the reference evaluator of the onnx
# package do so. OpenVINO, given the same file, removes the box at equality too.
#
# Equality is no accident of rounding: boxes on a grid of pixels or of anchors often have an IoU of
# exactly 1/2 or 1/4, which float32 holds exactly. The two boxes here are 10 x 10 and 10 x 20 and
# share a corner, so that their IoU is 100 / 200. A threshold one float32 step higher keeps both
# boxes in OpenVINO, and one step lower removes the second box in all three.
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
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

path = sys.argv[1]
print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, "
      f"openvino {openvino.__version__}")

inputs = {
    "boxes": np.array([[[0, 0, 10, 10], [0, 0, 10, 20]]], np.float32),
    "scores": np.array([[[0.9, 0.8]]], np.float32),
}


def kept(iou_threshold: np.float32) -> dict[str, list[int]]:
    """The indices of the boxes that survive, by each of the three."""
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["selected"])],
        "nms",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 2, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 2]),
        ],
        [helper.make_tensor_value_info("selected", TensorProto.INT64, [None, 3])],
        [
            numpy_helper.from_array(np.array([10], np.int64), "most"),
            numpy_helper.from_array(np.array([iou_threshold], np.float32), "iou"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    selected = {
        "onnxruntime": session.run(None, inputs)[0],
        "onnx reference": ReferenceEvaluator(model).run(None, inputs)[0],
        "openvino": compiled(list(inputs.values()))[0],
    }
    return {runtime: rows[:, 2].tolist() for runtime, rows in selected.items()}


half = np.float32(0.5)
thresholds = (np.nextafter(half, np.float32(0)), half, np.nextafter(half, np.float32(1)))
survivors = [kept(threshold) for threshold in thresholds]
for threshold, by_runtime in zip(thresholds, survivors, strict=True):
    print(f"IoU 0.5, threshold {threshold:.8f}: {by_runtime}")

both, first = [0, 1], [0]
below, equal, above = survivors
holds = (
    all(boxes == first for boxes in below.values())
    and equal == {"onnxruntime": both, "onnx reference": both, "openvino": first}
    and all(boxes == both for boxes in above.values())
)
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
