# SPDX-License-Identifier: BSD-3-Clause
"""Data: COCO-format files, transforms, batching, and a sample data set that needs no download."""

from fastdet.data.annotations import Annotations
from fastdet.data.batching import collate
from fastdet.data.classes import Classes
from fastdet.data.dataset import CocoDetection, DetectionDataset
from fastdet.data.images import read_image
from fastdet.data.mixing import CopyPaste, Mixed, MixUp, Mosaic
from fastdet.data.opening import open_dataset
from fastdet.data.shapes import write_shapes
from fastdet.data.transforms import (
    ScaleJitter,
    eval_transforms,
    from_albumentations,
    train_transforms,
)

__all__ = [
    "Annotations",
    "Classes",
    "CocoDetection",
    "CopyPaste",
    "DetectionDataset",
    "MixUp",
    "Mixed",
    "Mosaic",
    "ScaleJitter",
    "collate",
    "eval_transforms",
    "from_albumentations",
    "open_dataset",
    "read_image",
    "train_transforms",
    "write_shapes",
]
