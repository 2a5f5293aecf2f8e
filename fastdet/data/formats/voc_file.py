# SPDX-License-Identifier: BSD-3-Clause
"""One XML file of Pascal VOC, and the pixels that its numbers mean.

Two conventions are in use, and no file says which it follows:

- pixels count from 1 and xmax is the last pixel inside, as in the VOC data sets themselves: a box
  from x to x + width has xmin = x + 1 and xmax = x + width (detectron2 and supervision read so);
- coordinates count from 0: xmin = x and xmax = x + width (labelImg, Datumaro, CVAT, Label Studio).

Invariant: numbers stay decimal until the subtraction is done, so that a box that `voc_corners` has
written is read back bit for bit.
"""

import decimal
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element

from fastdet.data.formats.shapes import coordinate
from fastdet.data.formats.xml_file import read_xml

FirstPixel = Literal[0, 1]
Number = int | decimal.Decimal
WRITTEN_HERE = "fastdet"  # the <database> of files that fastdet writes

_EXACT = decimal.Context(prec=60)  # a double below 1e9 plus 1, to 1e-50
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """One object, as it is written."""

    name: str
    difficult: bool
    corners: tuple[Number, Number, Number, Number]
    polygons: list[list[Number]]  # x, y, x, y, ...


class VocFile(NamedTuple):
    """What one file says."""

    path: Path
    filename: str
    database: str
    width: str
    height: str
    objects: list[VocObject]
    skipped: list[tuple[str, str]]  # what was left out: why, and its place


def read_voc_file(path: Path) -> VocFile:
    """Reads one file; objects without a name or a box are left out.

    Raises:
        ValueError: not XML, or not of Pascal VOC.
    """
    root = read_xml(path)
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected the element annotation, got {root.tag}")
    objects, skipped = [], []
    for number, element in enumerate(root.iterfind("object"), 1):
        name = _text(element, "name")
        corners = _corners(element)
        if not name or corners is None:
            what = "no bndbox of four finite numbers" if name else "no name"
            skipped.append((f"skipped: {what}", f"{path.name}, object {number}"))
            continue
        difficult = _text(element, "difficult").lower() in ("1", "true")
        polygons = [_polygon(polygon) for polygon in element.iterfind("polygon")]
        objects.append(VocObject(name, difficult, corners, polygons))
    return VocFile(
        path,
        _text(root, "filename"),
        _text(root, "source/database"),
        _text(root, "size/width"),
        _text(root, "size/height"),
        objects,
        skipped,
    )


def first_pixel_of(files: list[VocFile]) -> tuple[FirstPixel, str]:
    """Whether the pixels of a data set count from 0 or from 1, and why; "" where that is sure.

    Args:
        files: all of the data set; only together they tell.
    """
    databases = {file.database for file in files if file.objects}
    if databases <= {WRITTEN_HERE}:
        return 1, ""
    if (zero := _with_zero(files)) is not None:
        return 0, f"{zero.path.name} has an xmin or ymin below 1"
    if all(name.startswith("The VOC2") for name in databases):
        return 1, ""
    if databases <= {"Unknown", "MyDatabase"}:
        return 0, "labelImg, Datumaro, CVAT and Label Studio write so, and <database> is theirs"
    return 1, "Pascal VOC does, and no xmin or ymin is below 1"


def voc_box(item: VocObject, first_pixel: FirstPixel) -> tuple[float, float, float, float]:
    """x, y, width and height of an object in pixels from the corner of the image."""
    x1, y1, x2, y2 = item.corners
    if isinstance(x1, int) and isinstance(y1, int) and isinstance(x2, int) and isinstance(y2, int):
        x, y = x1 - first_pixel, y1 - first_pixel
        return float(x), float(y), float(x2 - x), float(y2 - y)
    x, y = _EXACT.subtract(x1, first_pixel), _EXACT.subtract(y1, first_pixel)
    return float(x), float(y), float(_EXACT.subtract(x2, x)), float(_EXACT.subtract(y2, y))


def voc_polygon(points: list[Number], first_pixel: FirstPixel) -> list[float]:
    """x, y, x, y, ... in pixels from the corner of the image; corners are points, not pixels."""
    return [float(number) - first_pixel for number in points]


def voc_corners(xywh: tuple[float, float, float, float]) -> tuple[str, str, str, str]:
    """The text of xmin, ymin, xmax and ymax, counted from 1: what `voc_box` reads as `xywh`."""
    x, y, width, height = (decimal.Decimal(repr(float(number))) for number in xywh)
    return (
        _plain(_EXACT.add(x, 1)),
        _plain(_EXACT.add(y, 1)),
        _plain(_EXACT.add(x, width)),
        _plain(_EXACT.add(y, height)),
    )


def _with_zero(files: list[VocFile]) -> VocFile | None:
    """A file with a corner in the pixel before 1, which only counting from 0 puts in the image."""
    for file in files:
        if any(0 <= number < 1 for item in file.objects for number in item.corners[:2]):
            return file
    return None


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _corners(element: Element) -> tuple[Number, Number, Number, Number] | None:
    box = element.find("bndbox")  # of the object itself: its parts have their own
    if box is None:
        return None
    try:
        x1, y1, x2, y2 = (_number(box.findtext(name) or "") for name in _CORNERS)
    except ValueError:
        return None
    return x1, y1, x2, y2


def _polygon(element: Element) -> list[Number]:
    """The corners x1, y1, x2, y2, ...; none where one of them is no number."""
    texts = {child.tag: child.text or "" for child in element}
    try:
        return [
            _number(texts[f"{axis}{corner}"])
            for corner in range(1, len(texts) // 2 + 1)
            for axis in "xy"
        ]
    except (KeyError, ValueError):
        return []


def _number(text: str) -> Number:
    """A number as it is written, or ValueError."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    coordinate(text)
    try:
        return decimal.Decimal(text.strip())
    except ArithmeticError as error:
        raise ValueError(f"expected a number, got {text}") from error


def _plain(number: decimal.Decimal) -> str:
    """Without an exponent, and without zeros at the end: 11.5, 11."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
