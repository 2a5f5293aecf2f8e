# SPDX-License-Identifier: BSD-3-Clause
"""Draws the objects and the detections of one picture, small for a page or large.

Ground truth has dashed lines, detections have solid ones, a crowd is hatched. A picture is decoded
once and kept small, so that another filter costs no decoding.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdet.data.segmentations import Rle, decode
from fastdet.evaluation.pictures import TINT, Colour, Shrunk, shrunk_picture, write_caption
from fastdet.training.options import PictureOptions

KEPT = 384  # small pictures in memory, of 0.3 MB each
DASH = 4  # widths of a line

Style = Literal["solid", "dashed", "hatched"]


@dataclass(frozen=True)
class Mark:
    """A box to draw.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture as annotated.
        colour: of its lines.
        style: of its lines.
        caption: where captions are drawn.
        mask: of the picture's size.
    """

    box: tuple[float, float, float, float]
    colour: Colour
    style: Style
    caption: str = ""
    mask: Rle | None = None


@lru_cache(maxsize=KEPT)
def small(path: Path, size: tuple[int, int], options: PictureOptions, side: int) -> Shrunk:
    """See `large`; kept in memory. Small pictures are enlarged to about `side`, too."""
    return large(path, size, options, side, side)


def large(
    path: Path, size: tuple[int, int], options: PictureOptions, least: int, most: int
) -> Shrunk:
    """A picture with the options of a training; see `shrunk_picture`."""
    return shrunk_picture(path, size, most, least, **asdict(options))


def draw(shown: Shrunk, marks: Sequence[Mark], captions: bool) -> Image.Image:
    """A copy of the picture with marks on it; the first is drawn on top.

    Args:
        shown: the picture.
        marks: what is drawn.
        captions: whether to write the captions.
    """
    picture = _tinted(shown, marks)
    canvas = ImageDraw.Draw(picture)
    text_size = max(13, round(max(picture.size) / 60))
    width = max(2, round(max(picture.size) / 400))
    scale = np.array([picture.width / shown.size[1], picture.height / shown.size[0]] * 2)
    placed = []
    for mark in reversed(marks):
        corners = _corners(mark, scale, picture.size)
        if mark.style == "hatched":
            _hatch(picture, corners, mark.colour, width)
        if mark.style == "solid":
            canvas.rectangle(corners, outline=mark.colour, width=width)
        else:
            _dashed(canvas, corners, mark.colour, width)
        placed.append((corners, mark))
    if captions:
        font = ImageFont.load_default(text_size)
        for corners, mark in placed:
            if mark.caption:
                write_caption(canvas, picture.size, corners, mark.caption, mark.colour, font)
    return picture


def _tinted(shown: Shrunk, marks: Sequence[Mark]) -> Image.Image:
    masked = [mark for mark in marks if mark.mask is not None]
    if not masked:
        return shown.picture.copy()
    picture = shown.picture.copy()
    for mark in reversed(masked):
        assert mark.mask is not None
        (inside,) = decode([mark.mask], *mark.mask["size"])
        mask = Image.fromarray(inside * round(255 * TINT)).resize(picture.size)
        picture.paste(mark.colour, (0, 0, *picture.size), mask)
    return picture


def _corners(mark: Mark, scale: np.ndarray, size: tuple[int, int]) -> list[float]:
    """The box in pixels of the drawing, inside it and never smaller than can be seen."""
    x1, y1, x2, y2 = np.asarray(mark.box, np.float64) * scale
    corners = []
    for low, high, limit in ((x1, x2, size[0] - 1), (y1, y2, size[1] - 1)):
        start = min(max(min(low, high), 0.0), max(0.0, limit - 3.0))
        corners.append((start, min(max(high, low, start + 3.0), float(limit))))
    return [corners[0][0], corners[1][0], corners[0][1], corners[1][1]]


def _dashed(
    canvas: ImageDraw.ImageDraw, corners: Sequence[float], colour: Colour, width: int
) -> None:
    x1, y1, x2, y2 = corners
    step = DASH * width
    for start in np.arange(x1, x2, 2 * step).tolist():
        for y in (y1, y2):
            canvas.line((start, y, min(start + step, x2), y), fill=colour, width=width)
    for start in np.arange(y1, y2, 2 * step).tolist():
        for x in (x1, x2):
            canvas.line((x, start, x, min(start + step, y2)), fill=colour, width=width)


def _hatch(picture: Image.Image, corners: Sequence[float], colour: Colour, width: int) -> None:
    x1, y1, x2, y2 = (round(corner) for corner in corners)
    width_of_box, height_of_box = max(1, x2 - x1), max(1, y2 - y1)
    lines = Image.new("L", (width_of_box, height_of_box))
    canvas = ImageDraw.Draw(lines)
    for start in range(-height_of_box, width_of_box, 6 * width):
        canvas.line(
            (start, height_of_box, start + height_of_box, 0), fill=160, width=max(1, width // 2)
        )
    picture.paste(colour, (x1, y1), lines)
