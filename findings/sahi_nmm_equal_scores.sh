#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# SAHI's NMM does not merge overlapping boxes that have equal scores.
#
# Boxes are visited by falling score, and of equal scores the one with the lower coordinates comes
# first. But a box may take another one of an equal score only if that one's coordinates are not
# higher. So of two such boxes the first may not take the second, and the second finds that the first
# is kept already. GREEDYNMM merges them, and so does NMM if one score is a little higher.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 sahi==0.12.8

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from sahi.postprocess.combine import greedy_nmm, nmm

print(f"sahi {version('sahi')}, numpy {np.__version__}")
# x1, y1, x2, y2, score, category: an IoU of 0.8.
equal = np.array([[0, 0, 9, 9, 0.5, 0], [1, 0, 10, 9, 0.5, 0]], dtype=np.float32)
higher = equal.copy()
higher[0, 4] = 0.51
found = [nmm(equal, "IOU", 0.5), nmm(higher, "IOU", 0.5), greedy_nmm(equal, "IOU", 0.5)]
for name, groups in zip(("NMM, equal scores", "NMM, one score higher", "GREEDYNMM"), found):
    print(f"{name}: {len(groups)} boxes are left")
holds = found == [{0: [], 1: []}, {0: [1]}, {0: [1]}]
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
