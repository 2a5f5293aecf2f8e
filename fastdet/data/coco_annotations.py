# SPDX-License-Identifier: BSD-3-Clause
"""The annotations of a COCO file as columns, a slice of the file at a time.

A slice whose records are all of the types that COCO's own files have is taken column by column,
2 us an annotation. Any other slice is taken record by record, which knows what is wrong with each.
Invariant: both ways give the same columns.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fastdet.data.annotations import AnnotationNotes, Place, place
from fastdet.data.coco_json import check_records, integer, is_number, objects, parsed
from fastdet.data.segmentations import Rle, read_segmentation, without_bad_polygons

KEYS = ("id", "image_id", "category_id", "bbox")


class Usual(msgspec.Struct, gc=False):
    """A record of the usual types; msgspec refuses any other."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | None = None


class UsualWithMask(Usual, gc=False):
    """With its segmentation, not parsed yet."""

    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class Columns(NamedTuple):
    """Of the annotations that are kept; see `Annotations`."""

    ids: np.ndarray
    image_index: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


class AnnotationReader:
    """Checks the annotations of a file, slice by slice, and collects their columns.

    Attributes:
        notes: what is wrong with those that are left out.
        masks: of those that are kept, if masks are read.
    """

    def __init__(
        self,
        path: Path,
        index_of_image: dict[int, int],
        label_of_category: dict[int, int],
        sizes: list[tuple[int, int]] | None,
    ) -> None:
        """Takes the places of ids, and the (height, width) of the images if masks are read."""
        self.path = path
        self.index_of_image = index_of_image
        self.label_of_category = label_of_category
        self.sizes = sizes
        self.notes = AnnotationNotes(path)
        self.masks: list[Rle] = []
        self._decoder = msgspec.json.Decoder(list[Usual] if sizes is None else list[UsualWithMask])
        self._slices: list[Columns] = []
        self._ids: list[np.ndarray] = []  # of all, also of those left out
        self._count = 0

    def add(self, part: bytes | list[Any]) -> None:
        """Takes the next annotations of the file; see `read_json_in_slices`.

        Raises:
            ValueError: no object, a missing key, an id that is no integer or occurs twice.
        """
        columns = self._by_column(part) if isinstance(part, bytes) else None
        if columns is None:
            records = objects(self.path, part) if isinstance(part, bytes) else part
            try:
                check_records(self.path, records, "annotations", KEYS, start=self._count)
            except ValueError:
                self._refuse_repeated_ids()  # it comes earlier in the file
                raise
            columns = self._by_record(records)
        self._slices.append(columns)

    def columns(self) -> Columns:
        """All columns, after the last slice.

        Raises:
            ValueError: an id occurs twice.
        """
        self._refuse_repeated_ids()
        slices = [self._by_record([]), *self._slices]
        return Columns(*map(np.concatenate, zip(*slices, strict=True)))

    def _refuse_repeated_ids(self) -> None:
        ids = np.concatenate([np.empty(0, np.int64), *self._ids])
        ordered = np.sort(ids)
        if (ordered[1:] == ordered[:-1]).any():
            seen: set[int] = set()
            again = next(i for i in ids.tolist() if i in seen or seen.add(i))
            raise ValueError(f"{self.path}: annotation id {again} occurs more than once")

    def _by_column(self, part: bytes) -> Columns | None:
        """The columns of a slice whose records are all right; None of any other."""
        try:
            records: list[Any] = self._decoder.decode(part)
            ids = np.array([record.id for record in records], np.int64)
            index = [self.index_of_image[record.image_id] for record in records]
            labels = [self.label_of_category[record.category_id] for record in records]
        except (ValueError, RecursionError, OverflowError, KeyError):
            return None
        crowds = [record.iscrowd for record in records]
        boxes = np.array([record.bbox for record in records], np.float64).reshape(-1, 4)
        areas = np.array([record.area for record in records], np.float64)  # NaN where it is null
        if not {*crowds} <= {0, 1, None} or (areas < 0).any():
            return None
        with np.errstate(over="ignore"):
            areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
        self._ids.append(ids)
        self._count += len(records)
        columns = _columns(ids, index, labels, boxes, areas, crowds)
        if self.sizes is None:
            return columns
        masks = [
            self._mask(place(record.image_id, record.id), parsed(record.segmentation), i)
            for record, i in zip(records, index, strict=True)
        ]
        self.masks += [mask for mask in masks if mask is not None]
        kept = np.array([mask is not None for mask in masks], bool)
        return Columns(*(column[kept] for column in columns))

    def _by_record(self, records: list[dict[str, Any]]) -> Columns:
        self._ids.append(_ids(self.path, records))
        self._count += len(records)
        kept = []
        for record in records:
            where = place(record["image_id"], record["id"])
            try:
                index, label = self._place(record)
                bbox, crowd = _bbox(record), _crowd(record)
            except ValueError as error:
                self.notes.add(f"skipped: {error}", where)
                continue
            if self.sizes is not None:
                mask = self._mask(where, record.get("segmentation"), index)
                if mask is None:
                    continue
                self.masks.append(mask)
            area = record.get("area")
            if area is not None and not (_is_finite(area) and area >= 0):
                kind = "kept with width * height as the area: area is not a number from 0 on"
                self.notes.add(kind, where)
                area = None
            area = float(bbox[2]) * float(bbox[3]) if area is None else area
            kept.append((record["id"], index, label, bbox, area, crowd))
        columns: Any = zip(*kept, strict=True) if kept else [()] * 6
        return _columns(*columns)

    def _mask(self, where: Place, segmentation: Any, index: int) -> Rle | None:
        """Of an annotation of the image at index; None, noted, where it has no usable one."""
        assert self.sizes is not None
        usable = without_bad_polygons(segmentation)
        try:
            mask = read_segmentation(usable, *self.sizes[index])
        except ValueError as error:
            self.notes.add(f"skipped: {error}", where)
            return None
        if usable is not segmentation:
            self.notes.add("kept without a polygon that has no three finite points", where)
        return mask

    def _place(self, record: dict[str, Any]) -> tuple[int, int]:
        """The index of an annotation's image and its label, or ValueError, which says why not."""
        image_id, category_id = integer(record["image_id"]), integer(record["category_id"])
        if image_id is None or image_id not in self.index_of_image:
            raise ValueError("the image is not in the file")
        if category_id is None or category_id not in self.label_of_category:
            raise ValueError("the category is not in the file")
        return self.index_of_image[image_id], self.label_of_category[category_id]


def _columns(ids: Any, index: Any, labels: Any, boxes: Any, areas: Any, crowds: Any) -> Columns:
    return Columns(
        np.asarray(ids, np.int64),
        np.array(index, np.int64),
        np.array(labels, np.int64),
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(areas, np.float64),
        np.array(crowds, bool),
    )


def _ids(path: Path, records: list[dict[str, Any]]) -> np.ndarray:
    ids = [record["id"] for record in records]
    big = [i for i in ids if not -(2**63) <= i < 2**63]
    if big:
        raise ValueError(f"{path}: annotation id {big[0]}: an id must be an integer of 64 bits")
    return np.array(ids, np.int64)


def _bbox(record: dict[str, Any]) -> list[float]:
    bbox = record["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        raise ValueError("bbox is not four numbers")
    if not all(map(_is_finite, bbox)):
        raise ValueError("bbox is not finite")
    return bbox


def _crowd(record: dict[str, Any]) -> bool:
    crowd = record.get("iscrowd")
    if crowd not in (None, 0, 1):  # of which False, True, 0.0 and 1.0 are equal to two
        raise ValueError("iscrowd is neither 0 nor 1")
    return bool(crowd)


def _is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that float64 holds."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False
