# SPDX-License-Identifier: BSD-3-Clause
"""The options of a training. It imports little, so that `fastdet --help` answers at once."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

# The keys of fastdet.models.MODELS; those with mask need data with segmentations.
ModelName = Literal[
    "atss",
    "cascade_mask_rcnn",
    "cascade_rcnn",
    "faster_rcnn",
    "fcos",
    "mask_rcnn",
    "retinanet",
    "tood",
    "vfnet",
]

# The keys of fastdet.models.necks.NECKS.
NeckName = Literal["fpn", "pafpn", "bifpn"]

# See fastdet.models.batch_norms.
BatchNorm = Literal["frozen", "eval", "train", "sync", "group"]

Exif = Literal["apply", "ignore"]  # see fastdet.data.read_image

Show = Literal["detections", "proposals"]  # what `fastdet predict` draws

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]  # as Lightning names them

_COUNTS = (
    "epochs",
    "batch_size",
    "min_size",
    "max_size",
    "size_divisor",
    "fpn_channels",
    "validate_every",
)


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are read: the keyword arguments of `fastdet.data.read_image`."""

    exif: Exif = "apply"
    """Rotate pictures by their EXIF orientation, or use them as they are stored."""
    bit_depth: int | None = None
    """Used bits of pictures with more than 8 bits per channel; unset: from the file."""
    max_pixels: int = 178_956_970
    """Refuse pictures with more pixels than this."""

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        _expect_count(self, "bit_depth")
        _expect_count(self, "max_pixels")


@dataclass(frozen=True)
class TrainOptions:
    """One training, from a data set to checkpoints and a log."""

    data: Path
    """Data set: a folder in COCO or YOLO format, or its COCO file or data.yaml."""
    out: Path
    """Folder for last.ckpt, best.ckpt (highest val/AP) and metrics.csv."""
    model: ModelName = "faster_rcnn"
    backbone: str = "resnet50"
    """Name of a timm model, or local-dir: and the folder of one."""
    pretrained: bool = False
    """Start from timm's ImageNet weights (a download), or those of the folder."""
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
    neck: NeckName | None = None
    """Neck between backbone and heads; unset: the model's own."""
    fpn_channels: int | None = None
    """Width of the neck; unset: the model's own, 256."""
    precision: Precision = "32-true"
    """float32, or mixed with bfloat16 or float16."""
    workers: int | None = None
    """Processes that load images; unset: none on a CPU, up to 8 beside a GPU."""
    validate_every: int = 1
    """Epochs from one validation, and one checkpoint, to the next; the last epoch has both."""
    drop_other_classes: bool = False
    """Leave out what the validation split has of classes that the training split lacks."""
    pictures: PictureOptions = PictureOptions()
    files_anywhere: bool = False
    """Allow file names in the annotations that lead out of the image folder."""
    seed: int = 0
    resume: bool = False
    """Continue from OUT/last.ckpt."""
    backbone_weights: Path | None = None
    """Start from a file of weights of the backbone: .pth or .safetensors."""
    batch_norm: BatchNorm | None = None
    """BatchNorms of the backbone: fixed statistics and weights (frozen), fixed statistics (eval),
    statistics of the batch (train), of all processes (sync), or GroupNorms (group); unset: frozen
    with weights, else train."""

    def check(self) -> None:
        """Raises ValueError, naming the option, where one is out of range."""
        self.pictures.check()
        for name in _COUNTS:
            _expect_count(self, name)
        _expect(0 < self.lr < math.inf, "lr", "a finite number above 0", self.lr)
        _expect(self.workers is None or self.workers >= 0, "workers", "0 or more", self.workers)
        choices = get_args(Precision)
        _expect(self.precision in choices, "precision", " or ".join(choices), self.precision)
        _expect(
            not (self.pretrained and self.backbone_weights),
            "backbone_weights",
            "no file together with pretrained",
            self.backbone_weights,
        )


def _expect_count(options: object, name: str) -> None:
    count = getattr(options, name)
    _expect(count is None or count >= 1, name, "a number from 1 on", count)


def _expect(holds: bool, option: str, expected: str, actual: object) -> None:
    if not holds:
        raise ValueError(f"{option}: expected {expected}, got {actual}")
