# SPDX-License-Identifier: BSD-3-Clause
"""YOLO: labels/, a text file a picture, and classes.txt.

A row is `class x y width height score`, centre and size as fractions of the picture, as
Ultralytics writes with `save_txt` and `save_conf`; of a mask it is `class x1 y1 x2 y2 ... score`.
Classes count from 0. A picture without detections has an empty file, one of unknown size none.
With the pictures in images/ beside labels/, the folder is a data set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdet.data.outlines import mask_outline
from fastdet.data.segmentations import decode, read_segmentation
from fastdet.data.writers.yolo import box_values
from fastdet.files import replacing
from fastdet.predicting.format_options import CsvOptions
from fastdet.predicting.formats.files import picture_files_in, size_of
from fastdet.predicting.formats.results import ResultImage, Results


def paths(images: list[ResultImage], out: Path) -> list[Path]:
    """The files that `write` makes.

    Raises:
        ValueError: see `picture_files_in`.
    """
    return [*picture_files_in(out / "labels", ".txt", images), out / "classes.txt"]


def check_classes(classes: Sequence[str], csv: CsvOptions) -> None:
    """Raises ValueError for a name that classes.txt cannot hold."""
    broken = [name for name in classes if name != " ".join(name.split())]
    if broken:
        raise ValueError(f"expected names of classes that fit on a line, got {broken[0]!r}")


def write(results: Results, out: Path, csv: CsvOptions) -> None:
    """Writes the label files and the list of classes.

    Raises:
        ValueError: a name of a class with a line end; see `picture_files_in`.
    """
    check_classes(results.classes, csv)
    *files, classes = paths(results.images, out)
    for file, image, rows in zip(files, results.images, results.rows(), strict=True):
        if not len(rows) and not image.height:
            continue
        lines = [_line(results, int(row), *size_of(image)) for row in rows]
        with replacing(file) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    with replacing(classes) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in results.classes), encoding="utf-8")


def _line(results: Results, row: int, height: int, width: int) -> str:
    values = box_values(results.boxes_xywh[row].tolist(), height, width)
    if results.segmentations is not None:
        values = _outline(results.segmentations[row], height, width) or values
    numbers = [*values, float(results.scores[row])]
    return f"{results.labels[row] - 1} {' '.join(map(repr, numbers))}\n"


def _outline(segmentation: Any, height: int, width: int) -> list[float]:
    """x1, y1, x2, y2, ... along the mask; none of a mask without a pixel."""
    if segmentation is None:
        return []
    mask = decode([read_segmentation(segmentation, height, width)], height, width)[0]
    points = mask_outline(mask.astype(bool))
    return [value for x, y in points for value in (x / width, y / height)]
