# SPDX-License-Identifier: BSD-3-Clause
"""Transforms of an image and its target before the model, built on torchvision.transforms.v2."""

from fastdet.data.transforms.albumentations import from_albumentations
from fastdet.data.transforms.canvas import CANVAS_COLOUR, on_canvas
from fastdet.data.transforms.crop import CropKeepingBoxes
from fastdet.data.transforms.large_scale_jitter import large_scale_jitter
from fastdet.data.transforms.recipes import eval_transforms, train_transforms
from fastdet.data.transforms.scale_jitter import ScaleJitter
from fastdet.data.transforms.visible import drop_hidden

__all__ = [
    "CANVAS_COLOUR",
    "CropKeepingBoxes",
    "ScaleJitter",
    "drop_hidden",
    "eval_transforms",
    "from_albumentations",
    "large_scale_jitter",
    "on_canvas",
    "train_transforms",
]
