# SPDX-License-Identifier: BSD-3-Clause
"""Opening a split of a data set folder, whatever its format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdet.data.dataset import DetectionDataset, Target
from fastdet.data.formats import find_splits
from fastdet.data.images import Exif


def open_dataset(
    folder: str | Path,
    split: str,
    transforms: Callable[[Any, Target], tuple[Any, Target]] | None = None,
    masks: bool = False,
    *,
    exif: Exif = "apply",
    files_anywhere: bool = False,
    **options: Any,
) -> DetectionDataset:
    """Opens a split of a data set folder.

    Args:
        folder: see `fastdet.data.formats`.
        split: "train" or "val", as a rule.
        transforms: see `DetectionDataset`.
        masks: read the segmentations.
        exif: see `read_image`.
        files_anywhere: allow file names that lead out of the image folder.
        options: see `DetectionDataset`.

    Raises:
        FileNotFoundError: no such split.
        ValueError: a broken file; as `DetectionDataset`.
    """
    folder = Path(folder)
    splits = find_splits(folder)
    if split not in splits:
        raise FileNotFoundError(f"no split '{split}' in {folder}: it has {', '.join(splits)}")
    annotations = splits[split].read(masks=masks, exif=exif, files_anywhere=files_anywhere)
    return DetectionDataset(annotations, transforms, exif=exif, **options)
