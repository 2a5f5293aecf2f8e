#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# torch cannot resize a uint8 picture to one pixel with antialias=True: an internal assertion fails.
#
# The vectorised kernel for uint8 takes the result of 1 x 1 for another memory layout. float32 works, a result
# of 1 x 2 works, and so does uint8 on a processor without AVX2. Anything that shrinks small crops of uint8
# pictures with torchvision's transforms, which antialias by default, meets it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.14.1

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch.nn.functional import interpolate

print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
failed = set()
for dtype in (torch.uint8, torch.float32):
    for size in ((1, 1), (1, 2), (2, 1), (2, 2)):
        picture = torch.zeros(1, 3, 8, 8, dtype=dtype)
        try:
            interpolate(picture, size, mode="bilinear", antialias=True)
            print(f"{dtype} to {size}: ok")
        except RuntimeError as error:
            print(f"{dtype} to {size}: {str(error).splitlines()[0][:100]}")
            failed.add((dtype, size))
holds = failed == {(torch.uint8, (1, 1))} and "AVX" in torch.backends.cpu.get_cpu_capability()
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
