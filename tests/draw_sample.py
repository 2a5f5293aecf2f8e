# SPDX-License-Identifier: BSD-3-Clause
"""Draws tests/sample, a small data set in COCO format: `python -m tests.draw_sample`.

It has what real COCO files have: polygons of one and of several parts, run lengths as text and as
numbers, crowds, objects of every area range that overlap, category ids with gaps, a category
without objects, an image without objects, image ids that are not in order, PNG and JPEG, colour and
grey.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from tests.data_sets import SAMPLE

CATEGORIES = {2: "leaf", 3: "stone", 7: "cloud", 8: "coin", 13: "never drawn"}
COLOURS = {2: (60, 140, 60), 3: (120, 110, 100), 7: (225, 230, 240), 8: (200, 160, 40)}
SIZES = ((320, 240), (240, 320), (288, 256))  # width, height
RADII = ((57, 72), (20, 40), (5, 13))  # of large, medium and small objects; large ones lie below
OBJECTS = 3  # of each range in an image
IMAGES = 25

Points = np.ndarray  # (N, 2) x, y in pixels


def blob(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    """A closed outline about the centre, in hundredths of a pixel."""
    count = int(rng.integers(7, 13))
    step = 2 * np.pi / count
    angles = step * np.arange(count) + rng.uniform(0, step, count)
    reach = radius * rng.uniform(0.85, 1.15, count)
    return (centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]).round(2)


def place(rng: np.random.Generator, size: tuple[int, int], radius: float) -> Points:
    """A centre at which an outline of the radius stays inside the image."""
    margin = 1.15 * radius + 1
    return rng.uniform(margin, np.array(size) - margin)


def outlines(rng: np.random.Generator, size: tuple[int, int], radius: float) -> list[Points]:
    """The parts of one object: mostly one; of one in five below the large, two side by side."""
    if radius > RADII[1][1] or rng.random() < 0.8:
        return [blob(rng, place(rng, size, radius), radius)]
    centre = place(rng, size, 1.8 * radius)
    return [
        blob(rng, centre + np.array([shift * radius, 0]), 0.7 * radius) for shift in (-0.9, 0.9)
    ]


def polygons(parts: list[Points]) -> list[list[float]]:
    """COCO's form of outlines."""
    return [part.ravel().tolist() for part in parts]


def encoded(parts: list[Points], size: tuple[int, int]) -> dict[str, Any]:
    """The parts' pixels as pycocotools' run lengths."""
    width, height = size
    return coco_mask.merge(coco_mask.frPyObjects(polygons(parts), height, width))


def as_numbers(rle: dict[str, Any]) -> dict[str, Any]:
    """Run lengths as a list of numbers, COCO's form of crowds."""
    flat = coco_mask.decode(rle).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=2))
    return {"size": rle["size"], "counts": np.diff(ends, prepend=0).tolist()}


def annotation(parts: list[Points], size: tuple[int, int], form: str) -> dict[str, Any]:
    """Segmentation in the form, area and box: of the outline for polygons, else of the pixels."""
    rle = encoded(parts, size)
    area = int(coco_mask.area(rle))
    if form == "polygons":
        points = np.concatenate(parts)
        low, high = points.min(0), points.max(0)
        box = [*low, *(high - low)]
        return {"segmentation": polygons(parts), "area": area, "bbox": np.round(box, 2).tolist()}
    text = {"size": rle["size"], "counts": rle["counts"].decode()}
    segmentation = text if form == "text" else as_numbers(rle)
    return {"segmentation": segmentation, "area": area, "bbox": coco_mask.toBbox(rle).tolist()}


def scene(
    rng: np.random.Generator, size: tuple[int, int], crowd: bool
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A picture and its annotations, without ids."""
    picture = Image.new("RGB", size, tuple(int(c) for c in rng.integers(30, 90, 3)))
    canvas, annotations = ImageDraw.Draw(picture), []
    for low, high in RADII:
        for _ in range(OBJECTS):
            category = int(rng.choice(list(COLOURS)))
            form = str(rng.choice(["polygons", "polygons", "text", "numbers"]))
            parts = outlines(rng, size, rng.uniform(low, high))
            paint(rng, canvas, category, parts)
            one = annotation(parts, size, form)
            annotations.append({"category_id": category, "iscrowd": 0, **one})
    if crowd:
        centre = place(rng, size, 40)
        many = [blob(rng, centre + rng.uniform(-30, 30, 2), 6) for _ in range(12)]
        paint(rng, canvas, 8, many)
        annotations.append({"category_id": 8, "iscrowd": 1, **annotation(many, size, "numbers")})
    return picture, annotations


def paint(
    rng: np.random.Generator, canvas: ImageDraw.ImageDraw, category: int, parts: list[Points]
) -> None:
    """Fills the parts with the category's colour, a little varied."""
    colour = np.array(COLOURS[category]) + rng.integers(-25, 26, 3)
    for part in parts:
        corners = [(float(x), float(y)) for x, y in part]
        canvas.polygon(corners, tuple(int(c) for c in colour.clip(0, 255)), outline=(20, 20, 20))


def draw(folder: Path) -> None:
    """Writes val.json and images/."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, image_id in enumerate(rng.permutation(np.arange(100, 100 + IMAGES)).tolist()):
        size = SIZES[number % len(SIZES)]
        picture, found = scene(rng, size, crowd=number % 4 == 0)
        if number == 5:
            picture, found = Image.new("RGB", size, (70, 80, 90)), []
        if number == 7:
            picture = picture.convert("L")
        name = f"{image_id}.{'jpg' if number % 5 == 0 else 'png'}"
        picture.save(folder / "images" / name, optimize=True)
        images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        annotations += [{"image_id": image_id, **one} for one in found]
    ids = (1000 + rng.permutation(len(annotations))).tolist()
    content = {
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": [{"id": i, **one} for i, one in zip(ids, annotations, strict=True)],
    }
    (folder / "val.json").write_text(json.dumps(content).replace('}, {"id"', '},\n{"id"') + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SAMPLE)
    draw(parser.parse_args().out)
