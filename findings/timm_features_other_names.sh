#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The weights of timm's ConvNeXt do not fit the same ConvNeXt made by features_only=True; a ResNet's do.
#
# For most models features_only=True makes a wrapper that flattens the two outer levels of modules: the
# names stem.0.weight and stages.0.blocks.0... become stem_0.weight and stages_0.blocks.0... A ResNet has
# no such level, and EfficientNet has a features class of its own, so their names stay. With
# load_state_dict(strict=False), which is needed because the classifier has no place, a file of a ConvNeXt
# therefore loads nothing, and of a Swin next to nothing, without a word. The backbone of a detector then
# is random. timm's own way, pretrained_cfg_overlay=dict(file=...) with pretrained=True, renames them.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.2.6 torch==2.14.1 torchvision==0.29.1 timm==1.0.31

"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys

import timm
import torch

print(f"timm {timm.__version__}, torch {torch.__version__}")
loaded = {}
for name in ("resnet18", "efficientnet_b0", "convnext_atto", "swin_tiny_patch4_window7_224"):
    classifier = timm.create_model(name).state_dict()
    features = timm.create_model(name, features_only=True)
    missing = features.load_state_dict(classifier, strict=False).missing_keys
    total = len(features.state_dict())
    loaded[name] = total - len(missing)
    print(f"{name}: {loaded[name]} of {total} tensors loaded")
file = f"{sys.argv[1]}/convnext.pth"
torch.save(timm.create_model("convnext_atto").state_dict(), file)
overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
features = timm.create_model("convnext_atto", features_only=True, **overlay)
first, saved = features.state_dict()["stem_0.weight"], torch.load(file)["stem.0.weight"]
print(f"convnext_atto through pretrained_cfg_overlay: equal weights: {torch.equal(first, saved)}")
holds = (
    loaded["resnet18"] == 120
    and loaded["efficientnet_b0"] == 352
    and loaded["convnext_atto"] == 0
    and loaded["swin_tiny_patch4_window7_224"] == 4
    and torch.equal(first, saved)
)
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
