#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Pillow's getexif() decodes a whole PNG that has no EXIF, and refuses a truncated one.
#
# Image.open reads a header, and getexif() is documented as access to metadata. Of a JPEG it reads no
# pixel. Of a PNG without an eXIf chunk before the pixels it decodes all of them, since the chunk may
# also come after them. So a scan of the sizes and orientations of a folder of PNGs costs as much as
# decoding it, and a PNG that breaks off raises an error where a JPEG gives its orientation.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 pillow==12.0.0

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import io
import sys
import time

import numpy as np
import PIL
from PIL import Image

print(f"Pillow {PIL.__version__}")
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8))
holds = True
for name in ("JPEG", "PNG"):
    file = io.BytesIO()
    picture.save(file, name)
    start = time.perf_counter()
    with Image.open(file) as image:
        opened = time.perf_counter() - start
        image.getexif()
        read = time.perf_counter() - start - opened
    try:
        with Image.open(io.BytesIO(file.getvalue()[:100_000])) as image:
            image.getexif()
        broken = "gives its EXIF"
    except OSError as error:
        broken = f"raises {error}"
    print(f"{name}: open {1000 * opened:.1f} ms, getexif {1000 * read:.1f} ms; truncated, it {broken}")
    holds &= broken.startswith("raises") == (name == "PNG")
    holds &= (read > 10 * opened) == (name == "PNG")
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
