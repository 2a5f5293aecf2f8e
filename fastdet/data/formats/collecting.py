# SPDX-License-Identifier: BSD-3-Clause
"""Annotations from pictures and their objects, for formats with a record for each and no ids.

Invariant: the order of the file names decides the ids, which count from 1, and the list of classes
decides the labels; so neither depends on the order in which a file system lists its files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from fastdet.data.annotations import AnnotationNotes, Annotations
from fastdet.data.coco_file import LONGEST_SIDE
from fastdet.data.images import Exif, image_size
from fastdet.data.picture_files import SUFFIXES, pictures_below
from fastdet.ops.mask_rle import Rle


class Object(NamedTuple):
    """One annotation, in pixels from the image's upper left corner."""

    name: str
    xywh: tuple[float, float, float, float]
    crowd: bool = False
    mask: Rle | None = None


@dataclass
class Picture:
    """One image of a split; `size` is its height and width."""

    file_name: str
    size: tuple[int, int]
    objects: list[Object] = field(default_factory=list)


def collect(
    path: Path,
    images: Path,
    pictures: Sequence[Picture],
    classes: Sequence[str],
    masks: bool,
    notes: AnnotationNotes,
) -> Annotations:
    """The annotations of a split; warns of what `notes` has counted.

    Args:
        path: what was read, for messages.
        images: the folder that the file names start from.
        pictures: in any order.
        classes: names in the order of their labels, those of all splits.
        masks: keep the masks; objects without one are left out and counted.
        notes: what the reader left out.
    """
    label_of = {name: label for label, name in enumerate(classes, 1)}
    pictures = sorted(pictures, key=lambda picture: picture.file_name)
    objects: list[Object] = []
    image_index: list[int] = []
    for index, picture in enumerate(pictures):
        for number, item in enumerate(picture.objects, 1):
            if masks and item.mask is None:
                notes.add("skipped: no mask", f"{picture.file_name}, object {number}")
                continue
            objects.append(item)
            image_index.append(index)
    notes.warn()
    boxes = np.array([item.xywh for item in objects], np.float64).reshape(-1, 4)
    return Annotations(
        path=path,
        images=images,
        image_ids=list(range(1, len(pictures) + 1)),
        file_names=[picture.file_name for picture in pictures],
        image_sizes=np.array([picture.size for picture in pictures], np.int64).reshape(-1, 2),
        category_ids=list(range(1, len(classes) + 1)),
        names=list(classes),
        annotation_ids=np.arange(1, len(objects) + 1, dtype=np.int64),
        image_index=np.array(image_index, np.int64),
        labels=np.array([label_of[item.name] for item in objects], np.int64),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=np.array([item.crowd for item in objects], bool),
        masks=[item.mask for item in objects if item.mask is not None] if masks else None,
        has_ids=False,
    )


def pictures_by_stem(folder: Path) -> dict[str, list[str]]:
    """The pictures in a folder and below it, by their names without suffix."""
    found: dict[str, list[str]] = {}
    for path in pictures_below(folder):
        name = path.relative_to(folder)
        found.setdefault(name.with_suffix("").as_posix(), []).append(name.as_posix())
    for names in found.values():
        names.sort(key=lambda name: (SUFFIXES.index(PurePath(name).suffix.lower()), name))
    return found


def refuse_outside(path: Path, name: str, anywhere: bool) -> None:
    """Raises ValueError for what is no file name.

    And where it leads out of its folder, unless that is allowed.
    """
    if "\0" in name:
        raise ValueError(f"{path}: expected a file name, got {name!r}")
    parts = PurePath(name)
    if not anywhere and (parts.is_absolute() or ".." in parts.parts):
        raise ValueError(
            f"{path}: the file name {name!r} leads out of the image folder; files_anywhere=True "
            "allows it"
        )


def size_of(path: Path, width: Any, height: Any, picture: Path, exif: Exif) -> tuple[int, int]:
    """Height and width of a picture: as its record states them, else from its header.

    Args:
        path: of the record, for messages.
        width, height: text or numbers; None, "", 0 and "0" state nothing.
        picture: the file.
        exif: see `image_size`.

    Raises:
        FileNotFoundError: nothing is stated, and there is no such picture.
        ValueError: what is stated is no size.
    """
    stated = [side.strip() if isinstance(side, str) else side for side in (width, height)]
    if any(side in (None, "", "0", 0) for side in stated):
        return image_size(picture, exif)
    try:
        sides = [float(side) for side in stated]
    except (OverflowError, TypeError, ValueError):
        sides = [0.0]
    if not all(1 <= side <= LONGEST_SIDE and side == int(side) for side in sides):
        raise ValueError(
            f"{path}: expected a width and a height from 1 to {LONGEST_SIDE}, got {width!r:.80} "
            f"and {height!r:.80}"
        )
    return int(sides[1]), int(sides[0])
