# SPDX-License-Identifier: BSD-3-Clause
"""The options of a training. It imports little, so that `fastdet --help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# The keys of fastdet.models.MODELS; mask_rcnn needs data with segmentations.
ModelName = Literal["faster_rcnn", "fcos", "mask_rcnn", "retinanet"]

Exif = Literal["apply", "ignore"]  # see fastdet.data.read_image


@dataclass(frozen=True)
class TrainOptions:
    """One training, from a COCO-format folder to checkpoints and a log."""

    data: Path
    """Folder with train.json, val.json and images/, or laid out as COCO itself."""
    out: Path
    """Folder for last.ckpt, best.ckpt (highest val/AP) and metrics.csv."""
    model: ModelName = "faster_rcnn"
    backbone: str = "resnet50"
    """Name of a timm ResNet."""
    pretrained: bool = False
    """Start from timm's ImageNet weights (a download)."""
    epochs: int = 12
    batch_size: int = 8
    lr: float = 5e-4
    """Peak of AdamW's learning rate, after a linear warm-up and before a cosine decay."""
    min_size: int = 800
    """Shorter side of the images that the model sees, in pixels."""
    max_size: int = 1333
    """Limit of the longer side: where min_size would exceed it, images get smaller."""
    size_divisor: int = 32
    """Height and width of a batch are multiples of it: larger means fewer shapes, more padding."""
    fpn_channels: int | None = None
    """Width of the feature pyramid; unset: the model's own, 256."""
    precision: str = "32-true"
    """As Lightning spells it: 32-true, bf16-mixed, 16-mixed."""
    workers: int | None = None
    """Processes that load images; unset: none on a CPU, up to 8 beside a GPU."""
    validate_every: int = 1
    """Epochs from one validation, and one checkpoint, to the next."""
    seed: int = 0
    resume: bool = False
    """Continue from OUT/last.ckpt."""
