# SPDX-License-Identifier: BSD-3-Clause
"""Augmentation that makes one item of several: mosaic, mixup, copy-paste."""

from fastdet.data.mixing.copy_paste import CopyPaste
from fastdet.data.mixing.mixed import Mix, Mixed
from fastdet.data.mixing.mixup import MixUp
from fastdet.data.mixing.mosaic import Mosaic

__all__ = ["CopyPaste", "Mix", "MixUp", "Mixed", "Mosaic"]
