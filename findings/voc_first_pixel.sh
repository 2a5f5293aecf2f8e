#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A box that labelImg writes to a Pascal VOC file is one pixel larger when supervision reads it.
#
# In Pascal VOC pixels count from 1, and xmax is the last pixel inside: supervision reads and writes
# so. labelImg writes the corners as they are, counted from 0. No file says which of the two it is.
# At the border labelImg writes 1 for 0, so that not even a 0 shows it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  lxml==6.1.3 numpy==2.2.6 opencv-python-headless==4.12.0.88 supervision==0.31.2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps labelImg==1.8.6

cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import supervision
from libs.pascal_voc_io import PascalVocWriter

print(f"labelImg {version('labelImg')}, supervision {version('supervision')}")
for name in ("pictures", "labelimg", "supervision"):
    Path(name).mkdir()
cv2.imwrite("pictures/a.jpg", np.zeros((30, 40, 3), np.uint8))
writer = PascalVocWriter("pictures", "a.jpg", [30, 40, 3])
writer.add_bnd_box(10, 20, 30, 28, "cat", 0)
writer.save("labelimg/a.xml")


def read(folder):
    data = supervision.DetectionDataset.from_pascal_voc("pictures", folder)
    ((_, _, found),) = data
    return data, found.xyxy[0].tolist()


data, once = read("labelimg")
data.as_pascal_voc(annotations_directory_path="supervision")
_, twice = read("supervision")
print("the box that labelImg was given: [10, 20, 30, 28]")
print(f"read by supervision: {once}")
print(f"written and read by supervision: {twice}")
holds = once == [9, 19, 30, 28] == twice
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
