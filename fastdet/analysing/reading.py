# SPDX-License-Identifier: BSD-3-Clause
"""How a detector is applied or read. Apart from `checkpoints`, which imports the detectors."""

from dataclasses import dataclass

from fastdet.training.options import PictureOptions


@dataclass(frozen=True)
class Reading:
    """How a checkpoint is applied.

    Attributes:
        batch_size: images at a time.
        workers: processes that decode pictures.
        drop_other_classes: leave out what the split has of classes that the detector lacks;
            that of results too.
        pictures: how pictures are read.
    """

    batch_size: int = 4
    workers: int = 0
    drop_other_classes: bool = False
    pictures: PictureOptions = PictureOptions()
