# SPDX-License-Identifier: BSD-3-Clause
"""Reads the splits of a data set for the check; what the readers warn of becomes findings.

A split that cannot be read is one finding with the reader's message, and the others are still
checked.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fastdet.checking.findings import Finding, Spot
from fastdet.data.annotations import Annotations, AnnotationWarning, Place
from fastdet.data.formats import find_splits
from fastdet.data.formats.split import Split
from fastdet.data.images import Exif

# What the readers say, and the kind of finding that it is. Anything else: left out, or changed.
_KIND_OF_WORDS = {
    "the image is not in the file": "unknown-image",
    "the category is not in the file": "unknown-category",
    "the class is not in the list": "unknown-category",
    "the class is not a whole number": "unknown-category",
    "its label is not in the file": "unknown-category",
    "no label": "unknown-category",
    "no name": "unknown-category",
    "bbox is not finite": "box-not-finite",
    "a value is not finite": "box-not-finite",
    "bbox is not four numbers": "box-unreadable",
    "a value is not a number": "box-unreadable",
    "fewer than five numbers": "box-unreadable",
    "no bndbox of four finite numbers": "box-unreadable",
    "is broken": "box-unreadable",
    "no segment": "segmentation-missing",
    "no mask": "segmentation-missing",
    "segmentation is": "segmentation-unreadable",
    "the RLE": "segmentation-unreadable",
    "without a polygon that": "segmentation-unreadable",
}


@dataclass(frozen=True)
class CheckedSplit:
    """A split that could be read.

    Attributes:
        name: of the split.
        source: where it was found.
        annotations: without masks.
        masked: those that have a mask, with it; None where none has.
    """

    name: str
    source: Split
    annotations: Annotations
    masked: Annotations | None

    @cached_property
    def corners(self) -> np.ndarray:
        """(A, 4) xyxy of the boxes as written."""
        return corners_of(self.annotations)

    @cached_property
    def limits(self) -> np.ndarray:
        """(A, 2) width and height of each annotation's image."""
        return self.annotations.image_sizes[self.annotations.image_index][:, ::-1]

    def picture(self, index: int) -> Path | None:
        """The file of an image."""
        folder = self.annotations.images
        return None if folder is None else folder / self.annotations.file_names[index]

    def image_spot(self, index: int, detail: str = "") -> Spot:
        """The place of an image."""
        of = self.annotations
        return Spot(self.name, of.image_ids[index], of.file_names[index], None, detail, None, index)

    def spot(self, row: int, detail: str = "") -> Spot:
        """The place of an annotation."""
        return spot_of(self.name, self.annotations, row, detail)


def corners_of(annotations: Annotations) -> np.ndarray:
    """(A, 4) xyxy of the boxes as written."""
    boxes = annotations.boxes_xywh
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def spot_of(split: str, annotations: Annotations, row: int, detail: str = "") -> Spot:
    """The place of an annotation; without ids, by the number of the object in its image."""
    index = int(annotations.image_index[row])
    annotation_id = int(annotations.annotation_ids[row]) if annotations.has_ids else None
    if not annotations.has_ids:
        number = f"object {annotations.object_numbers[row]}"
        detail = f"{number}, {detail}" if detail else number
    x, y, width, height = (float(value) for value in annotations.boxes_xywh[row])
    return Spot(
        split,
        annotations.image_ids[index],
        annotations.file_names[index],
        annotation_id,
        detail,
        (x, y, x + width, y + height),
        index,
    )


def read_splits(
    folder: Path, exif: Exif, files_anywhere: bool
) -> tuple[list[CheckedSplit], list[Finding]]:
    """The splits of a data set that can be read, and what their readers found.

    Raises:
        FileNotFoundError: no data set of a known format.
    """
    with _recorded() as caught:
        found = find_splits(folder)
    findings = list(_findings_of_reader("", caught))
    splits = []
    for name, source in found.items():
        try:
            with _recorded() as caught:
                annotations = _read(source, False, exif, files_anywhere)
        except Exception as error:  # whatever a reader meets, the other splits are still checked
            findings += _unreadable(name, source, error)
            continue
        findings += _findings_of_reader(name, caught, annotations)
        known = {str(warning) for warning in caught}
        masked, of_masks = _read_masks(name, source, exif, files_anywhere, known)
        findings += of_masks
        splits.append(CheckedSplit(name, source, annotations, masked))
    return splits, findings


def _read(source: Split, masks: bool, exif: Exif, files_anywhere: bool) -> Annotations:
    """A split, whatever its pictures are: that is checked later."""
    read = source.read_partly or source.read
    return read(masks=masks, exif=exif, files_anywhere=files_anywhere)


def _read_masks(
    name: str, source: Split, exif: Exif, files_anywhere: bool, known: set[str]
) -> tuple[Annotations | None, list[Finding]]:
    try:
        with _recorded() as caught:
            masked = _read(source, True, exif, files_anywhere)
    except Exception:  # without masks it could be read: a size is unknown, which they need
        return None, []
    if not masked.masks:
        return None, []
    new = [warning for warning in caught if str(warning) not in known]
    return masked, list(_findings_of_reader(name, new, masked))


@contextmanager
def _recorded() -> Iterator[list[Warning]]:
    """What the block warns of, in place of printing it."""
    said: list[Warning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [entry.message for entry in caught if isinstance(entry.message, Warning)]


def _findings_of_reader(
    split: str, said: list[Warning], annotations: Annotations | None = None
) -> Iterator[Finding]:
    index_of = {}
    if said and annotations is not None:
        index_of = {identity: index for index, identity in enumerate(annotations.image_ids)}
    for warning in said:
        if not isinstance(warning, AnnotationWarning):
            yield Finding("reader-message", split, detail=str(warning), count=1)
            continue
        changed = warning.kind.startswith("kept")
        default = "annotation-changed" if changed else "annotation-left-out"
        kinds = (kind for words, kind in _KIND_OF_WORDS.items() if words in warning.kind)
        places = [_spot_of_place(split, place, annotations, index_of) for place in warning.places]
        yield Finding(next(kinds, default), split, places, warning.kind, warning.count)


def _spot_of_place(
    split: str, place: Place, annotations: Annotations | None, index_of: dict[int, int]
) -> Spot:
    known = isinstance(place.image_id, int)
    index = index_of.get(place.image_id) if known else None  # pyright: ignore[reportArgumentType]
    name = place.file_name
    if index is not None and annotations is not None:
        name = annotations.file_names[index]
    detail = "" if place.annotation_id is not None else place.text
    return Spot(split, place.image_id, name, place.annotation_id, detail, None, index)


def _unreadable(split: str, source: Split, error: Exception) -> Iterator[Finding]:
    expected = isinstance(error, OSError | ValueError)
    message = str(error) if expected else f"{source.path}: {type(error).__name__}: {error}"
    yield Finding("annotations-unreadable", split, detail=" ".join(message.split()), count=1)
    if places := list(_repeated_ids(split, source)):
        yield Finding("ids-repeated", split, places)


def _repeated_ids(split: str, source: Split) -> Iterator[Spot]:
    """Every id that occurs more than once in a COCO file."""
    if source.format != "coco":
        return
    try:
        content = json.loads(source.path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    for noun, name in (("image", "images"), ("category", "categories"), ("", "annotations")):
        entries = content.get(name) if isinstance(content, dict) else None
        ids = Counter(
            entry["id"]
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and isinstance(entry.get("id"), int | float | str)
        )
        for identity in (one for one, count in ids.items() if count > 1):
            yield Spot(
                split,
                image_id=identity if noun == "image" else None,
                annotation_id=None if noun else identity,
                detail=f"{noun} id {identity}" if noun == "category" else "",
            )
