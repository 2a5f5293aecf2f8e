# SPDX-License-Identifier: BSD-3-Clause
"""What is drawn on a picture of a collection, and the table of its objects beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastdet.analysing.errors import CORRECT
from fastdet.evaluation.pictures import Colour, class_colour
from fastdet.viewing.collection import KIND_NAMES, UNKNOWN, Collection
from fastdet.viewing.drawing import Mark
from fastdet.viewing.filtering import Selection

Colouring = Literal["kind of error", "class"]

KIND_COLOURS: dict[str, Colour] = {
    "correct": (46, 160, 67),
    "classification": (255, 149, 0),
    "localisation": (10, 132, 255),
    "both": (175, 82, 222),
    "duplicate": (90, 200, 230),
    "background": (255, 59, 48),
    "missed": (255, 45, 170),
    "ignored": (160, 160, 160),
}
GREY: Colour = (160, 160, 160)


def picture_path(collection: Collection, index: int) -> Path:
    """The file of a picture."""
    annotations = collection.annotations
    assert annotations.images is not None
    return annotations.images / annotations.file_names[index]


def marks_on(
    collection: Collection,
    index: int,
    side: int,
    objects: np.ndarray,
    detections: np.ndarray,
    object_kinds: np.ndarray,
    colouring: Colouring,
    masks: bool,
) -> list[Mark]:
    """The marks of a picture, objects after detections, so that detections lie on top.

    Args:
        collection: of the picture.
        index: of the picture.
        side: whose detections are drawn.
        objects: rows of the annotations.
        detections: rows of the side's detections.
        object_kinds: see `Selection`; empty without detections.
        colouring: what the colours mean.
        masks: draw those that there are.
    """
    annotations = collection.annotations
    marks: list[Mark] = []
    if len(detections):
        found, kinds = collection.sides[side].found, collection.sides[side].errors.kinds
        of_side = collection.detection_masks(side) if masks else None
        for row in detections.tolist():
            label, kind = int(found.labels[row]), KIND_NAMES[int(kinds[row])]
            colour = class_colour(label) if colouring == "class" else KIND_COLOURS[kind]
            caption = f"{annotations.names[label - 1]} {found.scores[row]:.2f}"
            caption += "" if kind == "correct" else f" {kind}"
            mask = None if of_side is None else of_side[row]
            marks.append(Mark(_corners(found.boxes_xywh[row]), colour, "solid", caption, mask))
    of_objects = collection.object_masks() if masks and len(objects) else {}
    for row in objects.tolist():
        label, crowd = int(annotations.labels[row]), bool(annotations.crowd[row])
        kind = _object_kind(object_kinds, row)
        colour = class_colour(label)
        if colouring == "kind of error" and len(object_kinds):
            colour = KIND_COLOURS.get(kind, GREY)
        caption = annotations.names[label - 1] + (" crowd" if crowd else "")
        caption += f" {kind}" if kind not in ("", "correct", "ignored") else ""
        style = "hatched" if crowd else "dashed"
        box = _corners(annotations.boxes_xywh[row])
        marks.append(Mark(box, colour, style, caption, of_objects.get(row)))
    return marks


def table_of(
    collection: Collection,
    side: int,
    objects: np.ndarray,
    detections: np.ndarray,
    object_kinds: np.ndarray,
) -> list[dict[str, Any]]:
    """A row for each object and each detection, in this order; arguments as of `marks_on`."""
    annotations = collection.annotations
    number_of = {row: number for number, row in enumerate(objects.tolist(), 1)}
    rows = [
        _row(
            f"object {number}",
            annotations.names[int(annotations.labels[row]) - 1],
            None,
            "crowd" if annotations.crowd[row] else _object_kind(object_kinds, row),
            "",
            annotations.boxes_xywh[row],
        )
        for row, number in number_of.items()
    ]
    if len(detections):
        found, errors = collection.sides[side].found, collection.sides[side].errors
        rows += [
            _row(
                f"detection {number}",
                annotations.names[int(found.labels[row]) - 1],
                float(found.scores[row]),
                KIND_NAMES[int(errors.kinds[row])],
                _about(number_of, int(errors.about[row])),
                found.boxes_xywh[row],
            )
            for number, row in enumerate(detections.tolist(), 1)
        ]
    return rows


def summary(chosen: Selection, objects: np.ndarray, kinds: Sequence[int]) -> str:
    """One line on a picture: how many objects and, of detections, how many are wrong."""
    words = [_counted(len(objects), "object")]
    if len(chosen.object_kinds):
        wrong = sum(kind > CORRECT for kind in kinds)
        words.append(_counted(len(kinds), "detection"))
        lost = int((chosen.object_kinds[objects] > CORRECT).sum())
        words += [f"{wrong} wrong"] if wrong else []
        words += [f"{lost} not found"] if lost else []
    return ", ".join(words)


def _row(
    what: str, name: str, score: float | None, kind: str, about: str, box: np.ndarray
) -> dict[str, Any]:
    x, y, width, height = (round(float(value), 1) for value in box)
    return {
        "": what,
        "class": name,
        "score": "" if score is None else f"{score:.3f}",
        "kind": kind,
        "of": about,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
    }


def _about(number_of: dict[int, int], row: int) -> str:
    if row < 0:
        return ""
    return f"object {number_of[row]}" if row in number_of else "an object that is not shown"


def _object_kind(object_kinds: np.ndarray, row: int) -> str:
    if not len(object_kinds) or object_kinds[row] == UNKNOWN:
        return ""
    return KIND_NAMES[int(object_kinds[row])]


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
