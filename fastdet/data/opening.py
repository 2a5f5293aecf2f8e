# SPDX-License-Identifier: BSD-3-Clause
"""Opening a split of a data set, whatever its format; making splits of data that has none."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdet.data.annotations import Annotations
from fastdet.data.dataset import DetectionDataset, Target
from fastdet.data.formats import find_splits
from fastdet.data.formats.split import USUAL_NAMES, Split, usual_name
from fastdet.data.images import Exif
from fastdet.data.splitting import split_annotations

MADE_SPLITS = {"train": 0.8, "val": 0.2}  # of data without splits, and their parts


def open_dataset(
    folder: str | Path,
    split: str,
    transforms: Callable[[Any, Target], tuple[Any, Target]] | None = None,
    masks: bool = False,
    *,
    exif: Exif = "apply",
    files_anywhere: bool = False,
    format: str | None = None,
    **options: Any,
) -> DetectionDataset:
    """Opens a split of a data set.

    Args:
        folder: or the file that describes it; see `fastdet.data.formats`.
        split: "train" or "val", as a rule. Of a data set with one split that has another name,
            "train" and "val" are made, with a warning: four fifths and one fifth of the images, by
            a hash of their file names.
        transforms: see `DetectionDataset`.
        masks: read the segmentations.
        exif: see `read_image`.
        files_anywhere: allow file names that lead out of the image folder.
        format: see `find_splits`.
        options: see `DetectionDataset`.

    Raises:
        FileNotFoundError: no such split; no picture where they are looked for.
        ValueError: a broken file; as `DetectionDataset`.
    """
    reading: dict[str, Any] = {"exif": exif, "files_anywhere": files_anywhere}
    annotations = open_annotations(folder, split, masks, format=format, **reading)
    return DetectionDataset(annotations, transforms, exif=exif, **options)


def open_annotations(
    folder: str | Path,
    split: str,
    masks: bool = False,
    *,
    exif: Exif = "apply",
    files_anywhere: bool = False,
    format: str | None = None,
) -> Annotations:
    """What a split of a data set says, without its pictures; see `open_dataset`."""
    folder = Path(folder)
    splits = find_splits(folder, format)
    reading: dict[str, Any] = {"exif": exif, "files_anywhere": files_anywhere}
    if has_split(splits, split) and usual_name(split) not in splits:
        (whole,) = splits.values()
        return _made_split(whole, usual_name(split), masks, reading)
    if has_split(splits, split):
        return splits[usual_name(split)].read(masks=masks, **reading)
    hint = "; `fastdet split` makes them of one" if split in MADE_SPLITS else ""
    raise FileNotFoundError(f"no split '{split}' in {folder}: it has {', '.join(splits)}{hint}")


def has_split(splits: dict[str, Split], split: str) -> bool:
    """Whether a data set has a split, or one can be made."""
    is_whole = len(splits) == 1 and not set(splits) & set(USUAL_NAMES)
    return usual_name(split) in splits or (is_whole and usual_name(split) in MADE_SPLITS)


def _made_split(whole: Split, split: str, masks: bool, reading: dict[str, Any]) -> Annotations:
    """One of `MADE_SPLITS`; it has the same images with masks and without."""
    with warnings.catch_warnings():
        if masks:
            warnings.simplefilter("ignore")  # they are given again
        annotations = whole.read(masks=False, **reading)
    parts = split_annotations(annotations, MADE_SPLITS)
    counts = " and ".join(f"{len(part.image_ids)} for {name}" for name, part in parts.items())
    warnings.warn(
        f"{whole.path}: no splits; its pictures are divided by a hash of their names, {counts}; "
        "`fastdet split` writes splits to files",
        stacklevel=4,
    )
    if not masks:
        return parts[split]
    kept = set(parts[split].image_ids)
    annotations = whole.read(masks=True, **reading)
    return annotations.of_images([i for i, id in enumerate(annotations.image_ids) if id in kept])
