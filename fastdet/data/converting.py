# SPDX-License-Identifier: BSD-3-Clause
"""Converting a data set to another format, and dividing one into training and validation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdet.data.annotations import Annotations
from fastdet.data.formats import find_splits, voc
from fastdet.data.formats.split import Split, usual_name
from fastdet.data.splitting import split_annotations
from fastdet.data.writers import write_dataset
from fastdet.files import refuse_content, refuse_inside

_READING: dict[str, Any] = {"exif": "apply", "files_anywhere": False}
_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        counts: images and objects of each split.
        notes: what the format could not hold; see `write_dataset`.
    """

    counts: dict[str, tuple[int, int]]
    notes: list[str]


def convert(
    folder: Path,
    out: Path,
    format: str,
    images: Any = "copy",
    masks: bool = False,
    voc_first_pixel: Any = None,
) -> Written:
    """Writes all splits of a data set in another format.

    Args:
        folder: see `fastdet.data.formats`.
        out, format, images: see `write_dataset`.
        masks: read the masks, too; objects without one are left out, with a warning.
        voc_first_pixel: what the pixels of a folder of Pascal VOC count from, 0 or 1; None: see
            `fastdet.data.formats.voc_file.first_pixel_of`.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `find_splits`, the format's reader and
            `write_dataset`.
    """
    _refuse(out, folder)
    found = _find(folder, voc_first_pixel)
    splits = {name: split.read(masks=masks, **_READING) for name, split in found.items()}
    return _write(splits, out, format, images)


def divide(
    folder: Path,
    out: Path,
    fractions: Sequence[float],
    seed: int = 0,
    split: str | None = None,
    images: Any = "link",
    masks: bool = False,
) -> Written:
    """Divides a split by chance into train, val and test, and writes them in COCO format.

    Args:
        folder: see `fastdet.data.formats`.
        out, images: see `write_dataset`.
        fractions: of train and val, or of train, val and test; above 0, with the sum 1.
        seed: of the division; the same seed gives the same one.
        split: which one is divided; None: the only one.
        masks: as `convert`.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `convert`; fractions out of range, no
            such split, several of which none is named.
    """
    if not 2 <= len(fractions) <= 3 or not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(
            f"fractions: expected two or three numbers between 0 and 1, got {_listed(fractions)}"
        )
    if not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(f"fractions: expected the sum 1, got {_listed(fractions)}")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    _refuse(out, folder)
    found = find_splits(folder)
    if split is None and len(found) > 1:
        raise ValueError(
            f"split: expected the name of one of {', '.join(found)}, which {folder} has already"
        )
    name = next(iter(found)) if split is None else usual_name(split)
    if name not in found:
        raise ValueError(f"split: expected {' or '.join(found)}, got {split}")
    annotations = found[name].read(masks=masks, **_READING)
    parts: dict[str, float] = dict(zip(_NAMES, fractions, strict=False))
    return _write(split_annotations(annotations, parts, seed), out, "coco", images)


def _refuse(out: Path, folder: Path) -> None:
    """Refuses a wrong `out` before the data is read, which may take long."""
    refuse_content(out)
    if folder.is_dir():
        refuse_inside(out, folder)


def _find(folder: Path, voc_first_pixel: Any) -> dict[str, Split]:
    if voc_first_pixel is None:
        return find_splits(folder)
    if voc_first_pixel not in (0, 1):
        raise ValueError(f"voc_first_pixel: expected 0 or 1, got {voc_first_pixel!r}")
    found = voc.splits(folder, voc_first_pixel)
    if not found:
        raise ValueError(f"voc_first_pixel: expected data of Pascal VOC, {folder} has none")
    return found


def _write(splits: Mapping[str, Annotations], out: Path, format: str, images: Any) -> Written:
    notes = write_dataset(splits, out, format, images)
    counts = {
        name: (len(split.image_ids), len(split.annotation_ids)) for name, split in splits.items()
    }
    return Written(counts, notes)


def _listed(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
