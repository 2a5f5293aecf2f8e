#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# hotcoco reads a CVAT label with "&" as two categories, neither of which has its name.
#
# XML writes "&" as "&amp;". The list of labels in `meta` is read as the text after the last such
# reference, and the `label` of a box as it stands in the file. Two more things differ from the file:
# a turned box (`rotation`) keeps its upright corners, and masks are left out (which a warning says).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hotcoco==1.3.0 numpy==2.2.6

"$folder/venv/bin/python" -W ignore - "$folder/annotations.xml" <<'PYTHON'
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

from hotcoco import COCO

print(f"hotcoco {version('hotcoco')}")
file = Path(sys.argv[1])
file.write_text("""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels><label><name>salt &amp; pepper</name></label></labels></task></meta>
  <image id="0" name="a.jpg" width="40" height="30">
    <box label="salt &amp; pepper" occluded="0" xtl="1" ytl="2" xbr="3" ybr="4" z_order="0"></box>
    <box label="salt &amp; pepper" occluded="0" xtl="10" ytl="10" xbr="20" ybr="14"
      rotation="90.00" z_order="0"></box>
  </image>
</annotations>
""")
label = ElementTree.parse(file).findtext("meta/task/labels/label/name")
data = COCO.from_cvat(str(file)).dataset
names = [category["name"] for category in data["categories"]]
boxes = [annotation["bbox"] for annotation in data["annotations"]]
print(f"the file's label: {label!r}")
print(f"categories: {names}")
print(f"boxes: {boxes}; the second is turned by 90 degrees, so it is [13, 7, 4, 10]")
holds = names == ["pepper", "salt &amp; pepper"] and boxes[1] == [10, 10, 10, 4]
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
