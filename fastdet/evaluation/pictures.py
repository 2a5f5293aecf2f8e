# SPDX-License-Identifier: BSD-3-Clause
"""Draws boxes, masks, class names and scores on an image.

A small image is first enlarged by an integer factor, so that the captions are readable.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastdet.data.images import read_pixels

READABLE_SIDE = 384
GREY = 128
TINT = 0.45  # opacity of a mask's colour

Colour = tuple[int, int, int]


def class_colour(label: int) -> Colour:
    """The colour of a class. Hues differ by the golden angle, so nearby labels look different."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + label * 0.618034) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    classes: Sequence[str] | None,
    scores: Tensor | None = None,
    masks: Tensor | None = None,
    colours: Sequence[Colour] | None = None,
) -> Image.Image:
    """Draws each box on the image, in the colour of its class and with a caption.

    Args:
        image: (3, H, W) RGB, uint8 or float in 0..1.
        boxes: (N, 4) xyxy in pixels of the image.
        labels: (N,) indices into `classes`.
        classes: names by label; None: captions without a name. A box without words has no caption.
        scores: (N,); if given, captions contain the score, and the best box is drawn on top.
        masks: (N, 1, H, W) bool; if given, objects are tinted in the colour of their class.
        colours: by label; None: `class_colour`.

    Returns:
        An RGB picture; its size is an integer multiple of the image's size.
    """
    colour_of = class_colour if colours is None else colours.__getitem__
    pixels = image.detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels.clamp(0, 1) * 255).round()
    array = pixels.permute(1, 2, 0).numpy().astype(np.uint8)
    order = range(len(boxes)) if scores is None else scores.argsort().tolist()
    if masks is not None:
        array = array.copy()
        for index in order:
            inside = masks[index, 0].cpu().numpy()
            colour = np.array(colour_of(int(labels[index])))
            array[inside] = ((1 - TINT) * array[inside] + TINT * colour).round()
    factor = max(1, round(READABLE_SIDE / max(array.shape[:2])))
    height, width = array.shape[0] * factor, array.shape[1] * factor
    picture = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
    text_size = max(16, round(max(picture.size) / 45))
    font = ImageFont.load_default(text_size)
    canvas = ImageDraw.Draw(picture)
    captions: list[tuple[list[float], str, Colour]] = []
    for index in order:
        colour = colour_of(int(labels[index]))
        corners = [float(value) * factor for value in boxes[index]]
        canvas.rectangle(corners, outline=colour, width=max(2, text_size // 7))
        words = [] if classes is None else [classes[int(labels[index])]]
        words += [] if scores is None else [f"{float(scores[index]):.2f}"]
        if any(words):
            captions.append((corners, " ".join(words), colour))
    # Draw captions last, so that no outline covers them.
    for corners, caption, colour in captions:
        write_caption(canvas, picture.size, corners, caption, colour, font)
    return picture


@dataclass(frozen=True)
class Shrunk:
    """A decoded picture.

    Attributes:
        picture: as large as it is shown; grey where nothing can be read.
        size: height and width that boxes refer to.
        error: why a training could not read it, such as another size than the annotations state.
    """

    picture: Image.Image
    size: tuple[int, int]
    error: str | None = None


def shrunk_picture(
    path: Path | None, size: tuple[int, int], most: int, least: int = 0, **reading: Any
) -> Shrunk:
    """Decodes a picture and brings its longer side to between `least` and `most` pixels.

    Args:
        path: of the file; None: it is not known.
        size: the height and width that the annotations state, or zeros.
        most: of the longer side.
        least: from which on a picture is not enlarged. The factor is an integer.
        reading: options of `read_image`.
    """
    pixels, error = None, "no image folder"
    if path is not None:
        pixels, error = _pixels(path, size, reading)
    if pixels is None:
        height, width = (length or least or most for length in size)
        scale = min(1.0, most / max(height, width))
        grey = max(1, round(width * scale)), max(1, round(height * scale))
        picture = Image.new("RGB", grey, (GREY,) * 3)
    else:
        picture = Image.fromarray(pixels)
    referred = size[0] or picture.height, size[1] or picture.width
    side = max(picture.size)
    factor = most / side if side > most else max(1, round(least / side))
    if factor != 1:
        method = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
        width, height = (max(1, round(length * factor)) for length in picture.size)
        picture = picture.resize((width, height), method)
    return Shrunk(picture, referred, error)


def _pixels(
    path: Path, size: tuple[int, int], reading: dict[str, Any]
) -> tuple[np.ndarray | None, str | None]:
    """(height, width, 3), where they can be read at all, and what is wrong with the file."""
    error = None
    for stated in (size, None) if min(size) > 0 else (None,):
        try:
            return read_pixels(path, stated, **reading), error
        except Exception as problem:  # a broken picture is shown too, with what is wrong
            error = error or " ".join(str(problem).split()) or type(problem).__name__
    return None, error


def write_caption(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: list[float],
    caption: str,
    colour: Colour,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Writes a caption above a box, or where it has room inside the picture."""
    left, top, right, bottom = canvas.textbbox((0, 0), caption, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0.0, corners[0]), max(0.0, size[0] - width))
    above, below = corners[1] - height, corners[3]
    y = above if above >= 0 else min(below, size[1] - height)
    canvas.rectangle([x, y, x + width, y + height], fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    canvas.text((x + 3 - left, y + 3 - top), caption, fill=ink, font=font)
