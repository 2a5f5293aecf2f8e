# SPDX-License-Identifier: BSD-3-Clause
"""Reading and checking the label files of YOLO: one text file a picture, one row an object.

A row is `class x y width height` (the centre and the size of the box) or `class x1 y1 x2 y2 ...`
(a segment, whose extent is the box), as parts of the picture's width and height. The picture is the
one that `read_image` gives, so its header is read: 0.1 ms a picture. Boxes are float64 and nothing
is clipped. Defects:

- a label file that is no text, a picture that cannot be read: ValueError;
- a row of other numbers, of no class of the list, or without a segment where masks are asked for:
  left out, with one warning per kind that counts them and names the first;
- a confidence behind the numbers, key points behind a box: the row is kept without them, with the
  same warning.
"""

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdet.data.annotations import AnnotationNotes, Annotations, Place
from fastdet.data.images import Exif, image_size
from fastdet.data.segmentations import Rle, read_segmentation

_UNKNOWN_CLASS = "the class is not in the list of classes"
_ENOUGH = 10  # objects of unknown classes, before numbers from 1 are suspected

# Of an object: the index of its picture, label, x y width height, area, mask.
_Row = tuple[int, int, list[float], float, Rle | None]


def read_yolo_labels(
    path: Path,
    images: Path,
    file_names: Sequence[str],
    names: dict[int, str],
    masks: bool = False,
    *,
    exif: Exif = "apply",
    key_points: int = 0,
    partly: bool = False,
) -> Annotations:
    """Reads the label files of pictures.

    Args:
        path: of the split, for messages.
        images: the image folder.
        file_names: below it, in the order in which image ids count from 1.
        names: of the classes, by their number in the files; its category id is one more.
        masks: make masks of the segments.
        exif: see `read_image`.
        key_points: how many numbers of key points stand behind each box.
        partly: leave out the labels of a picture that cannot be read, and give it the size (0, 0).

    Raises:
        ValueError: a label file that is no text; a picture that cannot be read.
    """
    sizes = _sizes(path, images, file_names, exif, partly)
    numbers = sorted(names)
    label_of = {number: label for label, number in enumerate(numbers, 1)}
    notes, missing = AnnotationNotes(path), 0
    rows: list[_Row] = []
    for index, (name, size) in enumerate(zip(file_names, sizes, strict=True)):
        file, text = label_file(images / name)
        missing += text is None
        if not all(size):
            count = sum(1 for row in (text or "").splitlines() if row.strip())
            if count:
                where = Place(str(file), index + 1, None, name)
                notes.add("skipped: the picture cannot be read", where, count)
            continue
        rows += _rows(index, file, text or "", size, label_of, masks, key_points, notes)
    notes.warn()
    if file_names and missing == len(file_names):
        expected = label_files(images / file_names[0])
        warnings.warn(
            f"{path}: none of its {missing} pictures has a label file; for the first one, looked "
            f"for {' and '.join(map(str, expected))}",
            stacklevel=2,
        )
    columns: Any = zip(*rows, strict=True) if rows else [()] * 5
    image_index, labels, boxes, areas, rles = columns
    unknown = notes.counts[f"skipped: {_UNKNOWN_CLASS}"]
    if labels and 0 in names and 1 not in labels and unknown >= _ENOUGH:
        warnings.warn(
            f"{path}: no object has class 0, and {unknown} have a class that is not in the list: "
            "the numbers may count from 1, which makes all classes wrong",
            stacklevel=2,
        )
    return Annotations(
        path=path,
        images=images,
        image_ids=list(range(1, len(file_names) + 1)),
        file_names=list(file_names),
        image_sizes=np.array(sizes, np.int64).reshape(-1, 2),
        category_ids=[number + 1 for number in numbers],
        names=_unique_names(names),
        annotation_ids=np.arange(1, len(rows) + 1),
        image_index=np.array(image_index, np.int64),
        labels=np.array(labels, np.int64),
        boxes_xywh=np.array(boxes, np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        crowd=np.zeros(len(rows), bool),
        masks=list(rles) if masks else None,
        has_ids=False,
    )


def _rows(
    index: int,
    file: Path,
    text: str,
    size: tuple[int, int],
    label_of: dict[int, int],
    masks: bool,
    key_points: int,
    notes: AnnotationNotes,
) -> Iterator[_Row]:
    """The usable rows of a label file."""
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        where, rle = f"{file}, line {line}", None
        try:
            number, values, extra = parsed_row(row, key_points)
            label = label_of.get(number)
            if label is None:
                raise ValueError(_UNKNOWN_CLASS)
            box, area, outline = _in_pixels(values, *size)
            if masks:
                if outline is None:
                    raise ValueError("no segment")
                rle = read_segmentation([outline], *size)
        except ValueError as error:
            notes.add(f"skipped: {error}", where)
            continue
        if extra:
            notes.add(f"kept without {extra}", where)
        yield index, label, box, area, rle


def label_files(picture: Path) -> list[Path]:
    """Where the labels of a picture may be: in `labels` instead of `images`, or beside it."""
    beside = picture.with_suffix(".txt")
    before, name, after = str(beside).rpartition(f"{os.sep}images{os.sep}")
    return [Path(before, "labels", after), beside] if name else [beside]


def label_file(picture: Path) -> tuple[Path, str | None]:
    """The label file of a picture and its text; None: there is no such file.

    Raises:
        ValueError: it is no text.
    """
    files = label_files(picture)
    for file in files:
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        try:
            if b"\0" in content:
                raise ValueError("a zero byte")
            return file, content.decode("utf-8-sig")
        except ValueError as error:
            raise ValueError(f"{file}: expected a text file of labels, got {error}") from error
    return files[0], None


def parsed_row(row: str, key_points: int = 0) -> tuple[int, list[float], str]:
    """The class, the other numbers, and what was left out of these.

    Returns:
        The class; 4 numbers of a box, or 6 and more of a segment; "" or what stood behind them.

    Raises:
        ValueError: saying what is wrong with the row.
    """
    try:
        first, *values = map(float, row.split())
    except ValueError:
        raise ValueError("a value is not a number") from None
    if not first.is_integer() or first < 0:
        raise ValueError("the class is not a whole number from 0 on")
    _expect_finite(values)
    if key_points and len(values) in (4 + key_points, 5 + key_points):
        return int(first), values[:4], "its key points"
    if len(values) < 4:
        raise ValueError("fewer than five numbers")
    if len(values) > 4 and len(values) % 2:  # as predictions in this format have
        return int(first), values[:-1], "its last number, taken for a confidence"
    return int(first), values, ""


def largest_class(pictures: Iterable[Path]) -> int:
    """The largest class in the labels of the pictures; -1 where there is none."""
    largest = -1
    for picture in pictures:
        for row in (label_file(picture)[1] or "").splitlines():
            try:
                largest = max(largest, parsed_row(row)[0])
            except ValueError:
                continue  # the reader counts it
    return largest


def _in_pixels(
    values: list[float], height: int, width: int
) -> tuple[list[float], float, list[float] | None]:
    """The box as x, y, width, height, the area, and the outline of a segment."""
    if len(values) == 4:
        x, y, w, h = values
        box = [x * width - w * width / 2, y * height - h * height / 2, w * width, h * height]
        _expect_finite(box)
        return box, box[2] * box[3], None
    xs = [x * width for x in values[::2]]
    ys = [y * height for y in values[1::2]]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    _expect_finite(box)
    outline = [coordinate for point in zip(xs, ys, strict=True) for coordinate in point]
    twice = sum(
        x * next_y - next_x * y
        for x, y, next_x, next_y in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
    )
    return box, abs(twice) / 2, outline


def _expect_finite(values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError("a value is not finite")


def _sizes(
    path: Path, images: Path, file_names: Sequence[str], exif: Exif, partly: bool
) -> list[tuple[int, int]]:
    sizes, refused = [], []
    for name in file_names:
        try:
            sizes.append(image_size(images / name, exif))
        except (FileNotFoundError, ValueError) as error:
            refused.append(error)
            sizes.append((0, 0))
    if refused and not partly:
        raise ValueError(
            f"{path}: {len(refused)} of {len(file_names)} pictures cannot be read, and labels are "
            f"parts of their sizes (first: {refused[0]})"
        )
    return sizes


def _unique_names(names: dict[int, str]) -> list[str]:
    counts = Counter(names.values())
    return [
        name if counts[name] == 1 else f"{name} #{number + 1}"
        for number, name in sorted(names.items())
    ]
