#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# auxiliary_loss=True changes what a DETR of transformers detects, with the same weights. And the proposals
# of its two-stage Deformable DETR never learn.
#
# auxiliary_loss is an option of the training. In DETR's own code a layer of the decoder takes the queries of
# the one before, and a normalised copy goes to the heads. In transformers, with auxiliary_loss, the layer
# takes the normalised copy, and the last queries are normalised twice. So a model that was trained with the
# option is wrong without it, and the other way round. Deformable DETR with two_stage has no loss for
# the proposals of its encoder: their heads get no gradient, and the choice of queries stays random in a
# training from scratch.
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
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
small = dict(
    d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=12, num_labels=3,
)
sizes = dict(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)
torch.manual_seed(0)
image = torch.rand(1, 3, 160, 160)

plain, auxiliary = (
    DetrForObjectDetection(
        DetrConfig(
            backbone_config=ResNetConfig(out_features=["stage4"], **sizes),
            auxiliary_loss=option,
            **small,
        )
    ).eval()
    for option in (False, True)
)
with torch.no_grad():
    for name, parameter in plain.named_parameters():
        if "norm" in name:  # as after a training
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    auxiliary.load_state_dict(plain.state_dict())
    off = (plain(image).logits - auxiliary(image).logits).abs().max().item()
print(f"DETR: the same weights with auxiliary_loss=True: logits differ by up to {off:.3f}")

levels = ResNetConfig(out_features=["stage2", "stage3", "stage4"], **sizes)
model = DeformableDetrForObjectDetection(
    DeformableDetrConfig(
        backbone_config=levels, two_stage=True, with_box_refine=True, two_stage_num_proposals=12,
        auxiliary_loss=True, **small,
    )
)
target = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
model(image, labels=[target]).loss.backward()
still = {n.removeprefix("model.") for n, p in model.named_parameters()
         if p.requires_grad and p.grad is None}
print(f"Deformable DETR, two_stage: {len(still)} parameters without gradient, such as enc_output.weight")
holds = off > 1e-3 and "enc_output.weight" in still
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
