# SPDX-License-Identifier: BSD-3-Clause
"""YOLO: `data.yaml`, `images/{split}/` and `labels/{split}/`, a text file a picture.

A row is `class x y width height`, the box's centre and sides as fractions of the picture's; with
masks it is `class x1 y1 x2 y2 ...`, the outline along the mask's pixels. Classes count from 0. The
file has no sizes: readers take them from the pictures, turned as their EXIF orientation says.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fastdet.data.annotations import Annotations
from fastdet.data.images import image_size
from fastdet.data.outlines import mask_outline
from fastdet.data.segmentations import decode
from fastdet.data.writers.plan import Notes, SplitPlan


def write(plans: list[SplitPlan], folder: Path, notes: Notes) -> None:
    """Writes the label files and data.yaml, whose classes are those of all splits.

    Raises:
        ValueError: a picture has another size than its annotations state.
    """
    classes = _classes(plans)
    for plan in plans:
        _write_labels(plan, folder / "labels" / plan.name, classes, notes)
    lines = [f"{plan.name}: {plan.image_folder}" for plan in plans]
    lines += ["names:", *(f"  {number}: {json.dumps(name)}" for number, name in enumerate(classes))]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _classes(plans: list[SplitPlan]) -> list[str]:
    """In the order of the first split's; what it lacks comes after."""
    return list(dict.fromkeys(name for plan in plans for name in plan.annotations.names))


def _write_labels(plan: SplitPlan, folder: Path, classes: list[str], notes: Notes) -> None:
    annotations = plan.annotations
    numbers = [classes.index(name) for name in annotations.names]
    crowds = int(annotations.crowd.sum())
    notes.add(f"crowd regions of {plan.name} left out, which YOLO does not have", crowds)
    sizes = annotations.image_sizes.tolist()
    for (source, _), name, (height, width), rows in zip(
        plan.sources(), plan.file_names, sizes, plan.rows(), strict=True
    ):
        height, width = _size(annotations, source, height, width)
        lines = []
        for row in rows:
            if annotations.crowd[row]:
                continue
            values = _values(plan, int(row), height, width, notes)
            if not values:
                notes.add(f"objects of {plan.name} left out, whose masks have no pixel")
                continue
            number = numbers[annotations.labels[row] - 1]
            lines.append(" ".join([str(number), *(repr(value) for value in values)]))
        file = folder / PurePosixPath(name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _size(annotations: Annotations, picture: Path, height: int, width: int) -> tuple[int, int]:
    """Height and width, which must be those that a reader will find."""
    if not picture.is_file():
        if height and width:
            return height, width
        raise FileNotFoundError(f"{picture}: no such image file, and its size is not stated")
    found = image_size(picture)
    if (height, width) not in (found, (0, 0)):
        raise ValueError(
            f"{picture}: expected the size that {annotations.path} states, {width}x{height}, got "
            f"{found[1]}x{found[0]} as it is displayed; YOLO has no other size"
        )
    return found


def box_values(xywh: Sequence[float], height: int, width: int) -> list[float]:
    """The centre and the size of a box, as fractions of the picture's sides."""
    x, y, w, h = xywh
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]


def _values(plan: SplitPlan, row: int, height: int, width: int, notes: Notes) -> list[float]:
    """The numbers after the class; none of a mask without a pixel."""
    annotations = plan.annotations
    x, y, w, h = annotations.boxes_xywh[row].tolist()
    if annotations.masks is None:
        return box_values([x, y, w, h], height, width)
    mask = decode([annotations.masks[row]], height, width)[0].astype(bool)
    points = mask_outline(mask)
    if not points:
        return []
    xs, ys = zip(*points, strict=True)
    if (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)) != (x, y, w, h):
        notes.add(
            f"boxes of {plan.name} replaced by those around their masks, as a row of YOLO has one "
            "of both"
        )
    return [value for x, y in points for value in (x / width, y / height)]
