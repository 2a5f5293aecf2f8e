#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# ensemble-boxes' soft_nms returns the scores as they came in: none is lowered.
#
# Soft-NMS lowers the score of a box that overlaps a better one and keeps the box. soft_nms passes a
# copy of the scores to the function that lowers them, and returns the original ones. What remains of
# Soft-NMS is that a box goes whose lowered score is below `thresh`, 0.001 by default. So nearly all
# boxes of all models stay, with their full scores.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ensemble-boxes==1.0.9 numpy==2.2.6

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

from ensemble_boxes import soft_nms

print(f"ensemble-boxes {version('ensemble-boxes')}, numpy {version('numpy')}")
# The second box is nine tenths of the first one.
boxes = [[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]]]
_, scores, _ = soft_nms(boxes, [[0.9, 0.8]], [[0, 0]], method=2, sigma=0.5)
print(f"scores 0.9 and 0.8, IoU 0.9: soft_nms returns {scores.tolist()}")
print("Soft-NMS by its definition: 0.8 * exp(-0.9 ** 2 / 0.5) = 0.158")
holds = scores.tolist() == [0.9, 0.8]
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
