# SPDX-License-Identifier: BSD-3-Clause
"""The pictures that a quantisation measures ranges on, and what it costs in accuracy."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fastdet.data import Classes, DetectionDataset, open_dataset, read_image
from fastdet.data.formats import find_splits
from fastdet.data.opening import has_split
from fastdet.predicting import picture_files

MOST_PICTURES = 128  # that ranges are measured on


class Accuracy(NamedTuple):
    """AP of the boxes, IoU 0.50:0.95, before and after the quantisation."""

    before: float
    after: float
    images: int


class CalibrationData(NamedTuple):
    """What a quantisation reads.

    Attributes:
        pictures: RGB (3, H, W) uint8, read one by one.
        val: the split that the accuracy is measured on, without transforms; None: there is none.
    """

    pictures: Iterator[Tensor]
    val: DetectionDataset | None


def calibration_data(data: Path, classes: Classes) -> CalibrationData:
    """Pictures of a data set, or of a folder.

    Args:
        data: a data set, see `fastdet.data.open_dataset`, or a folder of pictures. Of the train
            split, or else of the val split or the pictures, 128 at even distances are taken.
        classes: of the detector.

    Raises:
        ValueError: other classes in the data.
        FileNotFoundError: no picture.
    """
    val = _split(data, "val", classes)
    dataset = _split(data, "train", classes) or val
    if dataset is not None:
        return CalibrationData((dataset[i][0] for i in _spread(len(dataset))), val)
    files = picture_files([data])
    return CalibrationData((read_image(files[i].path) for i in _spread(len(files))), None)


def _split(data: Path, split: str, classes: Classes) -> DetectionDataset | None:
    try:
        splits = find_splits(data)
    except FileNotFoundError:  # a folder of pictures
        return None
    return open_dataset(data, split, classes=classes) if has_split(splits, split) else None


def _spread(count: int) -> range:
    """At most MOST_PICTURES indices at even distances."""
    return range(0, count, -(-count // MOST_PICTURES) or 1)
