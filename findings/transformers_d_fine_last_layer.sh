#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# In a training of transformers' D-FINE the last layer's distributions have no loss of their own.
#
# D-FINE refines for each side of a box a distribution, and its "fine-grained localisation" loss (FGL) teaches
# it. The last layer gives the boxes that are used, and teaches the other layers (DDF). In the authors' code
# FGL is a loss of every layer. In transformers the layers before the last one alone have it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.2.6 pillow==13.0.0 torch==2.13.0 scipy==1.15.3 transformers==5.24.0

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import re
import sys

import torch
import transformers

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
channels = [16, 24, 32, 40]
backbone = transformers.HGNetV2Config(
    stem_channels=[3, 8, 8],
    stage_in_channels=[8, *channels[:3]],
    stage_mid_channels=[8] * 4,
    stage_out_channels=channels,
    hidden_sizes=channels,
    stage_num_blocks=[1] * 4,
    stage_numb_of_layers=[2] * 4,
    out_features=["stage2", "stage3", "stage4"],
)
layers = 3
config = transformers.DFineConfig(
    backbone_config=backbone,
    num_labels=3,
    encoder_in_channels=channels[1:],
    encoder_hidden_dim=16,
    encoder_ffn_dim=24,
    encoder_attention_heads=2,
    decoder_in_channels=[16] * 3,
    d_model=16,
    decoder_ffn_dim=20,
    decoder_attention_heads=4,
    decoder_layers=layers,
    num_queries=30,
    num_denoising=0,
)
model = transformers.DFineForObjectDetection(config).train()
target = {
    "class_labels": torch.tensor([0, 2]),
    "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.4]]),
}
losses = model(pixel_values=torch.rand(1, 3, 64, 96), labels=[target]).loss_dict
print(f"losses of {layers} layers of the decoder and of the selection of queries:", *sorted(losses))
kinds = {kind: {name for name in losses if re.match(rf"loss_{kind}(_aux_\d+)?$", name)}
         for kind in ("bbox", "fgl")}
print(f"L1 losses of boxes: {len(kinds['bbox'])}; losses of distributions: {len(kinds['fgl'])}")
holds = len(kinds["bbox"]) == layers + 1 and kinds["fgl"] == {f"loss_fgl_aux_{i}" for i in range(layers - 1)}
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
