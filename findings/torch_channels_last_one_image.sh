#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The map of one image can be contiguous in channels_last for torch, and a convolution of it is not.
#
# Encoders of DETRs make maps of rows (N, H W, C) by transpose(1, 2) and unflatten(2, (H, W)). Of two
# images, the result is in channels_last, and so are convolutions of it. Of one image, the stride of the
# batch becomes C: is_contiguous(memory_format=torch.channels_last), which does not read the stride of a
# side of 1, is True, but convolutions return (N, C, H, W) in that order, and so do all layers behind them.
# With unflatten(1, (H, W)) and permute(0, 3, 1, 2) the map has the same numbers, and one image is like two.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch

print(f"torch {torch.__version__}")
last = {"memory_format": torch.channels_last}
conv = torch.nn.Conv2d(8, 4, 3, padding=1).eval()
holds = True
with torch.no_grad():
    for images in (1, 2):
        rows = torch.rand(images, 20 * 30, 8)
        for name, x in (
            ("transpose, unflatten", rows.transpose(1, 2).unflatten(2, (20, 30))),
            ("unflatten, permute", rows.unflatten(1, (20, 30)).permute(0, 3, 1, 2)),
        ):
            y = conv(x)
            print(
                f"{images} image(s), {name}: strides {x.stride()}, channels_last {x.is_contiguous(**last)};"
                f" of the convolution {y.stride()}, channels_last {y.is_contiguous(**last)}"
            )
            surprises = images == 1 and name.startswith("transpose")
            holds &= x.is_contiguous(**last) and y.is_contiguous(**last) != surprises
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
