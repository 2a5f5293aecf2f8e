#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# torchvision's v2.SanitizeBoundingBoxes drops objects at the border of a resized picture.
#
# Resizing multiplies a box by new / old in float32 and does not clamp: the side at 480 of 480 pixels may come
# to 480.00003. SanitizeBoundingBoxes removes boxes "that have any coordinate outside of their corresponding
# image", and with it the object, its label and its mask, without a word. RandomResizedCrop is a resize after a
# crop, so that an object which fills the picture is lost in about every fifth call. ClampBoundingBoxes before
# SanitizeBoundingBoxes keeps it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.2.6 torch==2.14.1 torchvision==0.29.1

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import torchvision
from torchvision import tv_tensors
from torchvision.transforms import v2

print(f"torchvision {torchvision.__version__}, torch {torch.__version__}")


def item():
    """A picture of 640 x 480 that one object fills."""
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([[0.0, 0.0, 640.0, 480.0]]), format="XYXY", canvas_size=(480, 640)
    )
    image = tv_tensors.Image(torch.zeros(3, 480, 640, dtype=torch.uint8))
    return image, {"boxes": boxes, "labels": torch.tensor([1])}


resized = v2.Resize((490, 490))(*item())[1]["boxes"]
print(f"Resize to 490 x 490: {resized[0].tolist()}, picture {resized.canvas_size}")
lost = {}
for name, clamp in (("without", []), ("with", [v2.ClampBoundingBoxes()])):
    crop = v2.RandomResizedCrop((224, 224), scale=(0.5, 1.0))
    transform = v2.Compose([crop, *clamp, v2.SanitizeBoundingBoxes()])
    torch.manual_seed(0)
    lost[name] = sum(len(transform(*item())[1]["boxes"]) == 0 for _ in range(500))
    print(f"RandomResizedCrop, {name} ClampBoundingBoxes: object lost in {lost[name]} of 500 calls")
holds = bool(resized.max() > 490) and lost["without"] > 50 and lost["with"] == 0
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
