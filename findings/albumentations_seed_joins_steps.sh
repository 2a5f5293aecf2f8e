#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# With a seed, the steps of an albumentations pipeline are not independent: two flips always agree.
#
# Compose(seed=...) and Compose.set_random_seed give every step a generator of its own, all with the same
# seed. Steps that draw one number a call stay together for ever: HorizontalFlip(p=0.5) and
# VerticalFlip(p=0.5) either both flip or neither does, so that two of the four pictures never occur. Without a
# seed, or with Compose.set_random_state, which gives all steps one generator, all four occur.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 albumentations==2.0.8

NO_ALBUMENTATIONS_UPDATE=1 "$folder/venv/bin/python" - <<'PYTHON'
import random
import sys
from collections import Counter

import albumentations as A
import numpy as np

print(f"albumentations {A.__version__}")
image = np.zeros((4, 4, 3), np.uint8)
image[0, 0] = 255  # upper left


def corners(pipeline, before=lambda pipeline, call: None):
    """Where the white corner is after 400 calls."""
    found = Counter()
    for call in range(400):
        before(pipeline, call)
        y, x = np.argwhere(pipeline(image=image)["image"][..., 0])[0].tolist()
        found["lower" if y else "upper", "right" if x else "left"] += 1
    return found


def flips(**options):
    return A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)], **options)


def share(pipeline, call):
    pipeline.set_random_state(np.random.default_rng(call), random.Random(call))


results = {
    "Compose(seed=1)": corners(flips(seed=1)),
    "set_random_seed before each call": corners(flips(), lambda p, call: p.set_random_seed(call)),
    "set_random_state before each call": corners(flips(), share),
    "no seed": corners(flips()),
}
for name, found in results.items():
    print(f"{name}: {dict(found)}")
together = {("upper", "left"), ("lower", "right")}
first, second, third, fourth = results.values()
holds = set(first) == set(second) == together and len(third) == len(fourth) == 4
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
