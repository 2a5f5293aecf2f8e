#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# supervision's NMS decides a box whose IoU is exactly the threshold by the rounding of the threshold.
#
# A box goes when its IoU with a kept box is above the threshold. supervision computes the IoU in
# float64, rounds it to float32, and compares it with the threshold in float64. An IoU of exactly 6 / 10
# becomes the float32 number next to 0.6, which is larger than 0.6: the box goes. One of 7 / 10 becomes
# a number that is smaller than 0.7: the box stays. Boxes in whole pixels often have such IoUs.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 supervision==0.31.2

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import supervision

print(f"supervision {supervision.__version__}, numpy {np.__version__}")
kept = []
for height, threshold in ((6, 0.6), (7, 0.7)):
    # The second box is a part of the first one, which is 10 x 10.
    boxes = np.array([[0, 0, 10, 10, 0.9], [0, 0, 10, height, 0.8]])
    kept.append(supervision.box_non_max_suppression(boxes, threshold).tolist())
    print(f"IoU {height} / 10, threshold {threshold}: the second box {'stays' if kept[-1][1] else 'goes'}")
holds = kept == [[True, False], [True, True]]
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
