#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A new RT-DETR of transformers scales its maps by random numbers near zero; a new D-FINE scales them by 1.
#
# A BatchNorm begins with the weight 1 everywhere in PyTorch. In RTDetrForObjectDetection and
# RTDetrV2ForObjectDetection, the weights of all BatchNorms behind the backbone are drawn like those of a
# convolution, with mean 0 and standard deviation 0.01. So the encoder's maps of a model that is made from a
# configuration are about 0, half of the channels change their sign, and little of the backbone reaches
# the decoder. Checkpoints replace these weights: only a training from scratch meets them, or one whose
# checkpoint has another neck.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.2.6 torch==2.14.1 torchvision==0.29.1 scipy==1.15.3 transformers==5.24.0

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import transformers
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
image = torch.rand(1, 3, 320, 320)
found = {}
for name, configuration, kind in (
    ("RT-DETR", RTDetrConfig, RTDetrForObjectDetection),
    ("RT-DETR v2", RTDetrV2Config, RTDetrV2ForObjectDetection),
    ("D-FINE", DFineConfig, DFineForObjectDetection),
):
    model = kind(configuration())
    neck = [
        module.weight.detach()
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d) and ".backbone." not in path
    ]
    with torch.no_grad():
        maps = model(image).encoder_last_hidden_state
    weights = torch.cat(neck)
    ones = int((weights == 1).sum())
    largest = max(map_.std().item() for map_ in maps)
    print(
        f"{name}: {len(neck)} BatchNorms behind the backbone, {ones} of {len(weights)} weights are 1, "
        f"mean {weights.mean():.4f}, deviation {weights.std():.4f}; maps deviate by {largest:.2g}"
    )
    found[name] = (ones, len(weights), weights.std().item(), largest)
drawn = all(
    found[name][0] == 0 and 0.009 < found[name][2] < 0.011 for name in ("RT-DETR", "RT-DETR v2")
)
holds = drawn and found["D-FINE"][0] == found["D-FINE"][1]
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
