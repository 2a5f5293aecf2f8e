# SPDX-License-Identifier: BSD-3-Clause
"""What is viewed: the annotations of a split and the detections of any number of files on it.

Everything is columns; no picture is opened here, so a split of 100,000 pictures opens as fast as
its annotations are parsed. Masks are read when they are first asked for. The kinds of errors are
those of `fastdet.analysing`, with boxes compared.
"""

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from fastdet.analysing.analysis import UNKNOWN_SCORE, AnalysisOptions
from fastdet.analysing.detections import Found, read_found
from fastdet.analysing.errors import (
    CORRECT,
    IGNORED,
    KINDS,
    Errors,
    find_errors,
    objects_from,
)
from fastdet.analysing.matching import NONE, Matches, match, overlapping
from fastdet.analysing.scores import best_f1
from fastdet.data.annotations import Annotations
from fastdet.data.opening import read_split
from fastdet.data.segmentations import Rle
from fastdet.training.options import PictureOptions

UNKNOWN = IGNORED - 1  # of an object that the detector cannot know
KIND_NUMBERS = {
    "correct": CORRECT,
    **{name: number for number, name in enumerate(KINDS)},
    "ignored": IGNORED,
}
KIND_NAMES = {number: name for name, number in KIND_NUMBERS.items()}


@dataclass(frozen=True)
class Side:
    """The detections of one file.

    Attributes:
        name: unique among the sides.
        found: the detections.
        looked_at: (I,) bool; the pictures that the detector has seen.
        known: (C,) bool; the classes that it knows.
        matches, errors: at the IoU threshold.
        best_score: the score threshold with the best F1; 0.5 where nothing is found.
    """

    name: str
    found: Found
    looked_at: np.ndarray
    known: np.ndarray
    matches: Matches
    errors: Errors
    best_score: float

    @cached_property
    def starts(self) -> np.ndarray:
        """(I + 1,) where the detections of each picture begin in `order`."""
        return _starts(self.found.image_index, len(self.looked_at))

    @cached_property
    def order(self) -> np.ndarray:
        """(D,) the detections by picture, best score first."""
        return np.lexsort((-self.found.scores, self.found.image_index))

    def rows(self, index: int) -> np.ndarray:
        """The detections on a picture, best score first."""
        return self.order[self.starts[index] : self.starts[index + 1]]

    def judged(self, annotations: Annotations) -> np.ndarray:
        """(A,) bool; the objects that the detector can know."""
        return self.looked_at[annotations.image_index] & self.known[annotations.labels - 1]

    def object_kinds(self, annotations: Annotations, score: float) -> np.ndarray:
        """(A,) the kind of each object if only detections from a score on count.

        CORRECT: found; CLASSIFICATION and LOCALISATION: a detection would find it but for that;
        MISSED; IGNORED: a crowd; UNKNOWN: in a picture that the detector has not seen, or of a
        class that it does not know.
        """
        kinds = objects_from(
            annotations, self.found, self.matches, self.errors.kinds, self.errors.about, score
        ).kinds
        kinds[~self.judged(annotations)] = UNKNOWN
        return kinds


@dataclass
class Collection:
    """A split with detections.

    Attributes:
        data, split: where it was read.
        annotations: without masks.
        sides: the detections, file by file.
        pictures: how pictures are read.
        files_anywhere: whether file names may lead out of the image folder.
    """

    data: Path
    split: str
    annotations: Annotations
    sides: list[Side]
    pictures: PictureOptions = field(default_factory=PictureOptions)
    files_anywhere: bool = False
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def order(self) -> np.ndarray:
        """(A,) the annotations by picture."""
        return np.argsort(self.annotations.image_index, kind="stable")

    @cached_property
    def starts(self) -> np.ndarray:
        """(I + 1,) where the annotations of each picture begin in `order`."""
        return _starts(self.annotations.image_index, len(self.annotations.image_ids))

    @cached_property
    def object_counts(self) -> np.ndarray:
        """(I,) the number of objects of each picture, crowds not counted."""
        index = self.annotations.image_index[~self.annotations.crowd]
        return np.bincount(index, minlength=len(self.annotations.image_ids))

    @cached_property
    def index_of_id(self) -> dict[int, int]:
        """The position of each image id."""
        return {identity: index for index, identity in enumerate(self.annotations.image_ids)}

    def rows(self, index: int) -> np.ndarray:
        """The annotations of a picture, in the order of the file."""
        return self.order[self.starts[index] : self.starts[index + 1]]

    def object_masks(self) -> dict[int, Rle]:
        """The masks by row of the annotations; objects without one are left out."""
        with self._reading:
            return self._object_masks

    def detection_masks(self, side: int) -> list[Rle] | None:
        """The masks of a file of detections; None unless every detection has one."""
        with self._reading:
            return self._detection_masks[side]

    @cached_property
    def _object_masks(self) -> dict[int, Rle]:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of objects without a mask, which are shown all the same
            try:
                masked = _read(
                    self.data, self.split, self.pictures, self.files_anywhere, masks=True
                )
            except ValueError:  # a picture's size is not known
                return {}
        keys = {key: row for row, key in enumerate(_keys(self.annotations))}
        found = zip(_keys(masked), masked.masks or (), strict=True)
        return {keys[key]: mask for key, mask in found if key in keys}

    @cached_property
    def _detection_masks(self) -> list[list[Rle] | None]:
        masks: list[list[Rle] | None] = []
        for side in self.sides:
            try:
                found, _ = read_found(side.found.path, self.annotations, True, True)
                masks.append(found.masks)
            except (OSError, ValueError):
                masks.append(None)
        return masks


def open_collection(
    data: Path,
    split: str = "val",
    detections: Sequence[Path] = (),
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
) -> Collection:
    """Reads a split and the detections on it.

    Args:
        data: data set, as for training.
        split: its name.
        detections: COCO results files.
        iou_threshold: from which IoU on an object is found.
        background_iou: up to which IoU with any object a detection is background.
        pictures: how pictures are read.
        files_anywhere: allow file names that lead out of the image folder.

    Raises:
        FileNotFoundError: no such data, split or file.
        ValueError: an option out of range; annotations without an image folder; a file that has no
            detections on this split; the same file twice.
    """
    pictures.check()
    AnalysisOptions(iou_threshold=iou_threshold, background_iou=background_iou).check()
    names = _names(detections)
    annotations = _read(data, split, pictures, files_anywhere, masks=False)
    if annotations.images is None:
        raise ValueError(f"{annotations.path}: expected annotations with an image folder")
    sides = [
        _side(name, path, annotations, iou_threshold, background_iou)
        for name, path in zip(names, detections, strict=True)
    ]
    return Collection(data, split, annotations, sides, pictures, files_anywhere)


def _side(
    name: str, path: Path, annotations: Annotations, iou_threshold: float, background_iou: float
) -> Side:
    """A file of detections. As in an analysis, objects of classes that it lacks are left out."""
    found, here = read_found(path, annotations, masks=False, drop_other_classes=True)
    rows = np.flatnonzero(here.known[annotations.labels - 1])
    known = annotations
    if len(rows) < len(annotations.labels):
        images = np.ones(len(annotations.image_ids), bool)
        known = annotations.kept(images, here.known[annotations.labels - 1])
        others = (annotations.names[label] for label in np.flatnonzero(~here.known))
        warnings.warn(
            f"{path}: no detections of {', '.join(others)}: such objects are not judged",
            stacklevel=3,
        )
    pairs = overlapping(known, found, background_iou, masks=False)
    matches = match(known, found, pairs, iou_threshold)
    errors = find_errors(known, found, pairs, matches, iou_threshold, background_iou)
    seen = ~known.crowd & here.looked_at[known.image_index]
    counted = ~matches.ignored
    best = best_f1(found.scores[counted], (matches.objects >= 0)[counted], int(seen.sum()))
    score = best.threshold if best.f1 > 0 else UNKNOWN_SCORE
    matches, errors = _with_all_rows(matches, errors, rows, len(annotations.labels))
    return Side(name, found, here.looked_at, here.known, matches, errors, float(score))


def _with_all_rows(
    matches: Matches, errors: Errors, rows: np.ndarray, objects: int
) -> tuple[Matches, Errors]:
    """With the rows of all annotations, where `rows` were looked at."""
    if len(rows) == objects:
        return matches, errors
    of = np.append(rows, NONE)

    def spread(values: np.ndarray, other: int) -> np.ndarray:
        everything = np.full(objects, other)
        everything[rows] = values
        return everything

    matches = matches._replace(
        objects=of[matches.objects], detections=spread(matches.detections, NONE)
    )
    errors = errors._replace(
        about=of[errors.about],
        object_kinds=spread(errors.object_kinds, UNKNOWN),
        fixing=spread(errors.fixing, NONE),
    )
    return matches, errors


def _read(
    data: Path, split: str, pictures: PictureOptions, files_anywhere: bool, masks: bool
) -> Annotations:
    return read_split(data, split, masks=masks, exif=pictures.exif, files_anywhere=files_anywhere)


def _names(paths: Sequence[Path]) -> list[str]:
    """A short name of each file: its last parts, as many as tell the files apart.

    Raises:
        ValueError: a file is given twice.
    """
    parts = [path.resolve().with_suffix("").parts for path in paths]
    for number, path in enumerate(paths):
        if parts[number] in parts[:number]:
            raise ValueError(f"detections: expected different files, got {path} twice")
    length = 1
    while len({one[-length:] for one in parts}) < len(parts):
        length += 1
    return ["/".join(one[-length:]) for one in parts]


def _keys(annotations: Annotations) -> list[tuple]:
    """What identifies each annotation: its id, or of a format without ids what it says."""
    if annotations.has_ids:
        return [(identity,) for identity in annotations.annotation_ids.tolist()]
    columns = (annotations.image_index, annotations.labels, *annotations.boxes_xywh.T)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _starts(image_index: np.ndarray, images: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(image_index, minlength=images))])
