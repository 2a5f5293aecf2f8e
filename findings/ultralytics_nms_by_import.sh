#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Ultralytics' non_max_suppression: whether anything has imported torchvision decides which boxes
# remain.
#
# It calls torchvision's NMS if torchvision has been imported in the process, and else NMS code of its
# own, whose description says that it "matches torchvision behavior exactly". They differ in the order
# of equal scores: torchvision's sort is stable, the other's argsort is not. Which of two overlapping
# boxes with equal scores suppresses the other then changes, and with it the set of boxes, at times
# their number. Equal scores are common in float16 and 8-bit models.
#
# So the same weights on the same picture give other detections after an unrelated `import torchvision`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.14.1 torchvision==0.29.1 numpy==2.2.6 opencv-python-headless==4.13.0.92 \
  matplotlib psutil polars pyyaml requests scipy ultralytics-thop==2.2.3
"${pip[@]}" --no-deps ultralytics==8.4.190  # its own requirement, opencv-python, needs a screen's libraries

YOLO_CONFIG_DIR="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import ultralytics
from ultralytics.utils.nms import non_max_suppression


def kept(seed: int) -> list[list[float]]:
    """The rows that remain of 60 boxes with scores in steps of 1/8, sorted."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(60, 2, generator=generator) * 60
    sizes = 15 + torch.rand(60, 2, generator=generator) * 30
    scores = (torch.rand(60, 1, generator=generator) * 8).round() / 8
    prediction = torch.cat([centres, sizes, scores], 1).T[None]  # (1, 4 + classes, boxes)
    return sorted(non_max_suppression(prediction, conf_thres=0.1, iou_thres=0.5)[0].tolist())


before = [kept(seed) for seed in range(100)]
imported_early = "torchvision" in sys.modules
import torchvision  # noqa: E402

after = [kept(seed) for seed in range(100)]
other_set = sum(a != b for a, b in zip(before, after))
other_number = sum(len(a) != len(b) for a, b in zip(before, after))
print(f"ultralytics {ultralytics.__version__}, torch {torch.__version__}, "
      f"torchvision {torchvision.__version__}")
print(f"of 100 pictures, {other_set} have other boxes after `import torchvision`, "
      f"{other_number} another number of boxes")
holds = not imported_early and other_set > 0 and other_number > 0
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
