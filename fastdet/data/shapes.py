# SPDX-License-Identifier: BSD-3-Clause
"""A sample data set in COCO format, drawn instead of downloaded.

Six kinds of shapes, turned at will, lie over each other on textured backgrounds. A kind tends to
a hue of its own but one in five has any hue, so that colour helps and only shape decides. Sizes are
8 px to half the image's side, log-uniform with the smallest thinned out.

Boxes and masks follow COCO's convention: the visible part as run lengths, its tight box, and `area`
its pixel count. Objects of which too little can be seen are in the picture but not in the
annotations.

Invariant: image i of a split depends on (seed, split, i, size) alone, and the same numbers give the
same bytes (with the same Pillow and NumPy). About 5 ms an image of 128 px.
"""

import colorsys
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from fastdet.data.segmentations import as_json
from fastdet.ops import encode_masks

DRAWING = 2  # increase this with any change to a picture or an annotation
SUPERSAMPLING = 4
MIN_SIZE = 8
OBJECTS = (2, 8)  # from, to below
# An object below either limit is too hidden to be found: it is not annotated.
MIN_VISIBLE_FRACTION = 0.3
MIN_VISIBLE_PIXELS = 12
# An object gets at most so many tries for a place where it overlaps others less than this.
PLACEMENTS = 4
MAX_OVERLAP = 0.3

Draw = Callable[[ImageDraw.ImageDraw, float, float, float], None]


def _regular(corners: int, inner: float = 1.0) -> Draw:
    """A polygon of `corners` tips; with inner < 1, notches between them: a star."""

    def draw(canvas: ImageDraw.ImageDraw, centre: float, radius: float, angle: float) -> None:
        steps = corners if inner == 1 else 2 * corners
        points = []
        for step in range(steps):
            reach = radius * (inner if inner != 1 and step % 2 else 1.0)
            turn = angle + 2 * math.pi * step / steps
            points.append((centre + reach * math.cos(turn), centre + reach * math.sin(turn)))
        canvas.polygon(points, fill=255)

    return draw


def _circle(canvas: ImageDraw.ImageDraw, centre: float, radius: float, angle: float) -> None:
    canvas.ellipse((centre - radius, centre - radius, centre + radius, centre + radius), fill=255)


def _ring(canvas: ImageDraw.ImageDraw, centre: float, radius: float, angle: float) -> None:
    _circle(canvas, centre, radius, angle)
    hole = 0.55 * radius
    canvas.ellipse((centre - hole, centre - hole, centre + hole, centre + hole), fill=0)


def _cross(canvas: ImageDraw.ImageDraw, centre: float, radius: float, angle: float) -> None:
    for turn in (angle, angle + math.pi / 2):
        along = np.array([math.cos(turn), math.sin(turn)]) * radius * 0.95
        across = np.array([-along[1], along[0]]) * 0.32
        corners = [along + across, along - across, -along - across, -along + across]
        canvas.polygon([(centre + x, centre + y) for x, y in corners], fill=255)


# The order gives category ids 1..6 and the hues, spread over the colour wheel.
SHAPES: dict[str, Draw] = {
    "circle": _circle,
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _regular(5, inner=0.42),
    "ring": _ring,
    "cross": _cross,
}


def write_shapes(
    folder: str | Path, train: int = 400, val: int = 100, size: int = 128, seed: int = 0
) -> Path:
    """Writes the sample data set: train.json, val.json and images/*.png.

    Args:
        folder: must not exist yet, or hold this very data set, which is then left as it is.
        train: number of training images.
        val: number of validation images.
        size: side of the square images in pixels, at least 32.
        seed: another seed, another data set.

    Returns:
        The folder, complete: it appears under its name only once everything is written.

    Raises:
        ValueError: a number out of range.
        FileExistsError: the folder holds something else.
    """
    folder = Path(folder)
    if train < 1 or val < 1 or size < 32 or seed < 0:
        raise ValueError(
            "write_shapes needs train >= 1, val >= 1, size >= 32 and seed >= 0, "
            f"got {train}, {val}, {size}, {seed}"
        )
    recipe = {
        "description": f"fastdet shapes, drawing {DRAWING}",
        "train": train,
        "val": val,
        "size": size,
        "seed": seed,
    }
    if folder.exists():
        if _recipe(folder) == recipe:
            return folder
        raise FileExistsError(f"{folder} exists and does not hold the data set {recipe}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (partial / "images").mkdir(parents=True)
        for number, (split, count) in enumerate({"train": train, "val": val}.items()):
            images, annotations = _write_images(
                partial / "images", split, number, count, size, seed
            )
            content = {
                "info": recipe,
                "images": images,
                "annotations": annotations,
                "categories": [{"id": i, "name": name} for i, name in enumerate(SHAPES, 1)],
            }
            (partial / f"{split}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def draw_scene(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, list[tuple[int, list[int], np.ndarray]]]:
    """Draws one picture.

    Args:
        rng: source of every choice.
        size: side in pixels.

    Returns:
        The image, (size, size, 3) uint8, and for each visible object its category id, box
        [x, y, width, height] and visible pixels (size, size) bool.
    """
    picture = _background(rng, size)
    owner = np.zeros((size, size), np.int64)  # the object on top at each pixel; 0 is background
    whole = [0]  # pixels of each object before anything covered it
    kinds = [0]
    for number in range(1, 1 + int(rng.integers(*OBJECTS))):
        kind = int(rng.integers(len(SHAPES)))
        diameter = _diameter(rng, size)
        alpha = _stamp(rng, list(SHAPES.values())[kind], diameter)
        window = _place(rng, alpha >= 0.5, owner)
        paint = _paint(rng, kind, alpha)
        picture[window] += alpha[..., None] * (paint - picture[window])
        solid = alpha >= 0.5
        owner[window][solid] = number
        whole.append(int(solid.sum()))
        kinds.append(kind + 1)
    picture += rng.normal(0, rng.uniform(0.005, 0.025), picture.shape)

    objects = []
    for number in range(1, len(whole)):
        visible = owner == number
        ys, xs = np.nonzero(visible)
        if len(xs) < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * whole[number]):
            continue
        box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        objects.append((kinds[number], [int(side) for side in box], visible))
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), objects


def _write_images(
    folder: Path, split: str, number: int, count: int, size: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images, annotations = [], []
    for index in range(count):
        picture, objects = draw_scene(np.random.default_rng([seed, number, index]), size)
        name = f"{split}_{index:05d}.png"
        Image.fromarray(picture).save(folder / name, compress_level=6)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for category_id, bbox, visible in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category_id,
                    "bbox": bbox,
                    "area": int(visible.sum()),
                    "iscrowd": 0,
                    "segmentation": as_json(*encode_masks(torch.from_numpy(visible)[None])),
                }
            )
    return images, annotations


def _recipe(folder: Path) -> dict[str, Any] | None:
    """The numbers that the data set in the folder was made with, if it is one of ours."""
    try:
        return json.loads((folder / "val.json").read_bytes())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _diameter(rng: np.random.Generator, size: int) -> float:
    """Log-uniform from MIN_SIZE to half the image, with a bend towards the large end."""
    return MIN_SIZE * (size / 2 / MIN_SIZE) ** (rng.random() ** 0.7)


def _stamp(rng: np.random.Generator, draw: Draw, diameter: float) -> np.ndarray:
    """Coverage (side, side) in 0..1 of a shape at a random angle."""
    side = math.ceil(diameter) + 2
    canvas = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    centre, radius = side * SUPERSAMPLING / 2, diameter * SUPERSAMPLING / 2
    draw(ImageDraw.Draw(canvas), centre, radius, rng.uniform(0, 2 * math.pi))
    fine = np.asarray(canvas, np.float64) / 255
    return fine.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean((1, 3))


def _place(rng: np.random.Generator, solid: np.ndarray, owner: np.ndarray) -> tuple[slice, slice]:
    """The window of a stamp: a random place inside, with a few tries to avoid other objects."""
    window = (slice(0, 0), slice(0, 0))
    for _ in range(PLACEMENTS):
        top, left = (int(place) for place in rng.integers(0, len(owner) - len(solid) + 1, 2))
        window = (slice(top, top + len(solid)), slice(left, left + len(solid)))
        if (owner[window][solid] > 0).mean() < MAX_OVERLAP:
            break
    return window


def _paint(rng: np.random.Generator, kind: int, alpha: np.ndarray) -> np.ndarray:
    """(side, side, 3) colours: the kind's hue, mostly; light from one side, and a dark rim."""
    hue = kind / len(SHAPES) + rng.normal(0, 0.03) if rng.random() < 0.8 else rng.random()
    colour = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1), rng.uniform(0.65, 1))
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35)
    side = len(alpha)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    light = 1 + strength * (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2)
    # Without a rim, two overlapping objects of one colour could not be told apart.
    inside = Image.fromarray(alpha.astype(np.float32)).filter(ImageFilter.MinFilter(3))
    light *= 1 - 0.4 * (alpha - np.asarray(inside))
    return (light[..., None] * np.array(colour)).clip(0, 1)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) in 0..1: a pale colour, a gradient, and noise of four frequencies."""
    base = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.2, 0.8))
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    texture = rng.uniform(0, 0.3) * (x * math.cos(angle) + y * math.sin(angle))
    for cells in (3, 6, 14, 40):
        grid = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        texture += rng.uniform(0, 0.06) * np.asarray(smooth, np.float64)
    tint = rng.normal(1, 0.15, 3)  # the texture differs a little between the channels
    return (np.array(base) + texture[..., None] * tint).clip(0, 1)
