# SPDX-License-Identifier: BSD-3-Clause
"""The annotations of one split, whatever format they were read from: a few NumPy columns.

65 bytes an annotation. Every reader makes `Annotations`; the data set, the evaluation, the checks
and the writers take them, so that no other module knows a format.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdet.data.segmentations import Rle


@dataclass(frozen=True)
class Annotations:
    """The columns of one split; images and annotations keep the order of the source.

    Attributes:
        path: what was read, for messages: a file or a folder.
        images: the folder that the file names start from; None where it is not known.
        image_ids: (I,) unique.
        file_names: (I,) below the image folder.
        image_sizes: (I, 2) height, width as recorded.
        category_ids: (C,) ascending; label l is `category_ids[l - 1]`.
        names: (C,) unique: where a file gives a name twice, its id is added.
        annotation_ids: (A,).
        image_index: (A,) position in `image_ids`.
        labels: (A,) 1..C.
        boxes_xywh: (A, 4) float64 as written, neither clipped nor checked for size.
        areas: (A,) float64, width * height where the source has none.
        crowd: (A,) bool.
        masks: (A,) run lengths, each of its image's size; None where they were not asked for.
        has_ids: whether the ids are the source's own. In formats without ids they count from 1, the
            annotations of each image in their order.
    """

    path: Path
    images: Path | None
    image_ids: list[int]
    file_names: list[str]
    image_sizes: np.ndarray
    category_ids: list[int]
    names: list[str]
    annotation_ids: np.ndarray
    image_index: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    masks: list[Rle] | None
    has_ids: bool = True

    def where(self, row: int) -> "Place":
        """The place of an annotation, for messages."""
        index = int(self.image_index[row])
        if self.has_ids:
            return place(self.image_ids[index], int(self.annotation_ids[row]))
        name = self.file_names[index]
        text = f"{name}, object {self.object_numbers[row]}"
        return Place(text, self.image_ids[index], None, name)

    @cached_property
    def object_numbers(self) -> np.ndarray:
        """(A,) from 1: which one of its image's annotations each is."""
        order = np.argsort(self.image_index, kind="stable")
        ordered = self.image_index[order]
        first = np.searchsorted(ordered, ordered)
        numbers = np.empty(len(order), np.int64)
        numbers[order] = np.arange(len(order)) - first + 1
        return numbers

    def of_images(self, indices: Sequence[int] | np.ndarray) -> "Annotations":
        """Some of the images with what they have; the classes stay, and so does every order.

        Args:
            indices: positions in `image_ids`, each once, in any order.
        """
        images = np.zeros(len(self.image_ids), bool)
        images[np.asarray(indices, np.int64)] = True
        return self.kept(images, images[self.image_index])

    def kept(self, images: np.ndarray, rows: np.ndarray) -> "Annotations":
        """What stays of the images and the annotations; the classes stay, and so does every order.

        Args:
            images: (I,) bool.
            rows: (A,) bool; none of an image that goes.
        """
        shown, own = np.flatnonzero(images).tolist(), np.flatnonzero(rows)
        new_index = np.cumsum(images) - 1
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in shown],
            file_names=[self.file_names[i] for i in shown],
            image_sizes=self.image_sizes[shown],
            annotation_ids=self.annotation_ids[own],
            image_index=new_index[self.image_index[own]],
            labels=self.labels[own],
            boxes_xywh=self.boxes_xywh[own],
            areas=self.areas[own],
            crowd=self.crowd[own],
            masks=None if self.masks is None else [self.masks[row] for row in own],
        )


class Place(NamedTuple):
    """Where an annotation is.

    Attributes:
        text: for messages; `str()` is this.
        image_id, annotation_id: as the source has them, which may be no integers; None where there
            are none.
        file_name: of the picture, where it is known.
    """

    text: str
    image_id: object = None
    annotation_id: object = None
    file_name: str | None = None

    def __str__(self) -> str:
        return self.text


def place(image_id: object, annotation_id: object) -> Place:
    """The place of an annotation that has ids."""
    text = f"image id {image_id}, annotation id {annotation_id}"
    return Place(text, image_id, annotation_id)


class AnnotationWarning(UserWarning):
    """One kind of defect in the annotations of a source, with every place that was noted.

    Attributes:
        path: the source.
        kind: what is wrong, and what was done.
        count: of annotations; there are fewer places where some were counted without theirs.
        places: in the order of the source.
    """

    def __init__(self, path: Path, kind: str, count: int, places: list[Place]) -> None:
        plural = "s" if count > 1 else ""
        super().__init__(f"{path}: {count} annotation{plural} {kind} (first: {places[0]})")
        self.path = path
        self.kind = kind
        self.count = count
        self.places = places


class AnnotationNotes:
    """Counts what is wrong with the annotations of one source, by kind, and warns once for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[Place]] = {}

    def add(self, kind: str, where: Place | str, count: int = 1) -> None:
        """Notes `count` more of a kind, and the place of the first of them."""
        self.counts[kind] += count
        where = where if isinstance(where, Place) else Place(where)
        self.places.setdefault(kind, []).append(where)

    def warn(self) -> None:
        """One AnnotationWarning per kind."""
        for kind, count in self.counts.items():
            warning = AnnotationWarning(self.path, kind, count, self.places[kind])
            warnings.warn(warning, stacklevel=3)
