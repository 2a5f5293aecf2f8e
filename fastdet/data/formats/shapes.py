# SPDX-License-Identifier: BSD-3-Clause
"""The shapes that annotation tools draw, as boxes and masks.

The box of a shape is its extent, in float64, not that of the pixels that its mask covers.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fastdet.data.segmentations import read_segmentation, without_bad_polygons
from fastdet.ops.mask_rle import Rle

Box = tuple[float, float, float, float]  # x, y, width, height

_ELLIPSE_POINTS = 72
_FARTHEST = 1e9  # pixels: differences stay finite, and a decimal keeps its digits


class Shape(NamedTuple):
    """The box and the mask of a shape; no mask where it has none or none was asked for."""

    xywh: Box
    mask: Rle | None = None


def coordinate(value: Any) -> float:
    """A number of pixels, or ValueError: text or a number that is finite and not absurd."""
    number = float(value)
    if not abs(number) <= _FARTHEST:
        raise ValueError(f"expected a finite number, got {value}")
    return number


def outline(points: list[tuple[float, float]], size: tuple[int, int], masks: bool) -> Shape:
    """A polygon.

    Args:
        points: its corners.
        size: height and width of the image.
        masks: whether the mask is needed.
    """
    flat = [number for point in points for number in point]
    return Shape(extent(points), mask_of([flat], size) if masks else None)


def extent(points: list[tuple[float, float]]) -> Box:
    """The box around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def turned_box(x1: float, y1: float, x2: float, y2: float, degrees: float) -> Box:
    """The upright box around a box that is turned about its centre."""
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width = abs(x2 - x1) * cos + abs(y2 - y1) * sin
    height = abs(x2 - x1) * sin + abs(y2 - y1) * cos
    return (x1 + x2 - width) / 2, (y1 + y2 - height) / 2, width, height


def ellipse(
    centre: tuple[float, float],
    radii: tuple[float, float],
    degrees: float,
    size: tuple[int, int],
    masks: bool,
) -> Shape:
    """An ellipse that is turned about its centre; see `outline`."""
    (cx, cy), (rx, ry) = centre, radii
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    width, height = 2 * math.hypot(rx * cos, ry * sin), 2 * math.hypot(rx * sin, ry * cos)
    xywh = (cx - width / 2, cy - height / 2, width, height)
    turns = [2 * math.pi * step / _ELLIPSE_POINTS for step in range(_ELLIPSE_POINTS)]
    upright = [(rx * math.cos(turn), ry * math.sin(turn)) for turn in turns]
    points = [(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in upright]
    return Shape(xywh, outline(points, size, masks).mask)


def pixels(window: np.ndarray, left: int, top: int, size: tuple[int, int], masks: bool) -> Shape:
    """A mask that is given in a window of the image.

    Args:
        window: (h, w) bool, the pixels from (left, top) on; those outside the image are cut off.
        left, top: of the window in the image.
        size, masks: see `outline`.

    Raises:
        ValueError: no pixel in the image.
    """
    y1, x1 = max(0, -top), max(0, -left)
    window = window[y1 : max(0, size[0] - top), x1 : max(0, size[1] - left)]
    rows, columns = np.flatnonzero(window.any(1)), np.flatnonzero(window.any(0))
    if not len(rows):
        raise ValueError("expected a pixel in the image")
    y1, x1 = y1 + top, x1 + left
    xywh = (
        float(x1 + columns[0]),
        float(y1 + rows[0]),
        float(columns[-1] - columns[0] + 1),
        float(rows[-1] - rows[0] + 1),
    )
    return Shape(xywh, _rle(window, x1, y1, size) if masks else None)


def mask_of(polygons: list[list[float]], size: tuple[int, int]) -> Rle | None:
    """The mask of polygons x, y, x, y, ... together; None where none of them is one."""
    try:
        return read_segmentation(without_bad_polygons(polygons), *size)
    except ValueError:
        return None


def _rle(window: np.ndarray, left: int, top: int, size: tuple[int, int]) -> Rle:
    """The run lengths in the image, column by column, of a window that lies in it."""
    height, width = size
    padded = np.pad(window.T.astype(np.int8), ((0, 0), (1, 1)))  # (w, h + 2)
    columns, rows = np.nonzero(np.diff(padded, axis=1))  # where a run starts, where it ends, ...
    edges, repeats = np.unique((columns + left) * height + rows + top, return_counts=True)
    # A run that reaches the bottom goes on where the next column starts at the top.
    edges = edges[repeats == 1]
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    if not counts[-1]:
        counts.pop()
    return read_segmentation({"size": [height, width], "counts": counts}, height, width)
