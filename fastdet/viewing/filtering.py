# SPDX-License-Identifier: BSD-3-Clause
"""Which pictures, objects and detections are shown. Costs a few passes over the columns."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from fastdet.analysing.errors import CORRECT
from fastdet.viewing.collection import KIND_NUMBERS, Collection

Range = tuple[float, float]
Order = Literal["file", "name", "most objects", "most errors", "largest", "smallest"]
ORDERS: tuple[Order, ...] = get_args(Order)
FoundBy = Literal["any", "only", "others only", "all", "none"]
FOUND_BY: tuple[FoundBy, ...] = get_args(FoundBy)
EVERY: Range = (-np.inf, np.inf)


@dataclass(frozen=True)
class Filter:
    """What is asked for; the defaults ask for everything.

    Attributes:
        classes: labels; none: all. A detection is of the class of the object that it is about, too.
        kinds: names in `KIND_NUMBERS`, of the detections of `side` and of objects; none: all.
        scores: of the detections of each side, from and to.
        side: the file of detections that is shown.
        found_by: only objects that some files find and others do not: this side alone, others and
            not this one, all, none.
        name: part of the file name, upper and lower case alike.
        objects: number of objects in a picture, from and to.
        size: longer side of a picture, from and to.
        order: of the pictures.
    """

    classes: frozenset[int] = frozenset()
    kinds: frozenset[str] = frozenset()
    scores: tuple[Range, ...] = ()
    side: int = 0
    found_by: FoundBy = "any"
    name: str = ""
    objects: Range = EVERY
    size: Range = EVERY
    order: Order = "file"


@dataclass(frozen=True)
class Selection:
    """What is shown.

    Attributes:
        images: positions of the pictures, in order.
        objects: (A,) bool; those that are asked for, in any picture that is shown.
        context: (A,) bool; the objects that detections shown are about, too.
        detections: (D,) bool; of the side that is shown.
        object_kinds: (A,) see `Side.object_kinds`; empty without detections.
        counts: by kind, the number of detections and of objects; whatever `kinds` asks for.
    """

    images: np.ndarray
    objects: np.ndarray
    context: np.ndarray
    detections: np.ndarray
    object_kinds: np.ndarray
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)


def select(collection: Collection, asked: Filter) -> Selection:
    """What a filter leaves of a collection.

    A picture is shown if it meets what is asked of pictures and, where something is asked of
    objects or detections, has one of them.
    """
    annotations = collection.annotations
    images = _pictures(collection, asked)
    objects = images[annotations.image_index] & _of_classes(annotations.labels, asked)
    kinds = np.zeros(0, np.int64)
    detections = np.zeros(0, bool)
    counts: dict[str, tuple[int, int]] = {}
    about = np.zeros(0, np.int64)
    if collection.sides:
        side = collection.sides[asked.side]
        about = side.errors.about
        kinds = side.object_kinds(annotations, _low(asked, asked.side))
        objects &= _found_by(collection, asked)
        detections = _detections(collection, asked, images, objects)
        for name, number in KIND_NUMBERS.items():
            of_detections = int((detections & (side.errors.kinds == number)).sum())
            counts[name] = of_detections, int((objects & (kinds == number)).sum())
        if asked.kinds:
            numbers = [KIND_NUMBERS[name] for name in asked.kinds]
            objects &= np.isin(kinds, numbers)
            detections &= np.isin(side.errors.kinds, numbers)
    if asked.classes or asked.kinds or asked.found_by != "any":
        having = np.zeros_like(images)
        having[annotations.image_index[objects]] = True
        if collection.sides:
            having[collection.sides[asked.side].found.image_index[detections]] = True
        images &= having
    context = objects.copy()
    shown = about[detections]
    context[shown[shown >= 0]] = True
    chosen = Selection(np.zeros(0, np.int64), objects, context, detections, kinds, counts)
    return replace(chosen, images=_ordered(collection, asked, chosen, np.flatnonzero(images)))


def _pictures(collection: Collection, asked: Filter) -> np.ndarray:
    """(I,) bool; the pictures that meet what is asked of them themselves."""
    annotations = collection.annotations
    sides = annotations.image_sizes.max(axis=1, initial=0)
    counts = collection.object_counts
    images = (counts >= asked.objects[0]) & (counts <= asked.objects[1])
    images &= (sides >= asked.size[0]) & (sides <= asked.size[1])
    part = asked.name.strip().casefold()
    if part:
        images &= np.array([part in name.casefold() for name in annotations.file_names], bool)
    return images


def _of_classes(labels: np.ndarray, asked: Filter) -> np.ndarray:
    if not asked.classes:
        return np.ones(len(labels), bool)
    return np.isin(labels, list(asked.classes))


def _low(asked: Filter, side: int) -> float:
    return asked.scores[side][0] if side < len(asked.scores) else -np.inf


def _found_by(collection: Collection, asked: Filter) -> np.ndarray:
    """(A,) bool; the objects that the right files find."""
    annotations = collection.annotations
    if asked.found_by == "any":
        return np.ones(len(annotations.labels), bool)
    finds = np.stack(
        [
            side.object_kinds(annotations, _low(asked, number)) == CORRECT
            for number, side in enumerate(collection.sides)
        ]
    )
    own, others = finds[asked.side], np.delete(finds, asked.side, axis=0).any(axis=0)
    chosen = {
        "only": own & ~others,
        "others only": ~own & others,
        "all": finds.all(axis=0),
        "none": ~finds.any(axis=0),
    }[asked.found_by]
    return chosen & ~annotations.crowd


def _detections(
    collection: Collection, asked: Filter, images: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """(D,) bool; the detections of any kind that are asked for."""
    side = collection.sides[asked.side]
    found, about = side.found, side.errors.about
    low, high = asked.scores[asked.side] if asked.side < len(asked.scores) else EVERY
    chosen = images[found.image_index] & (found.scores >= low) & (found.scores <= high)
    if asked.found_by != "any":
        return chosen & np.append(objects, False)[about]
    if asked.classes:
        labels = np.append(collection.annotations.labels, 0)[about]
        chosen &= _of_classes(found.labels, asked) | _of_classes(labels, asked)
    return chosen


def _ordered(
    collection: Collection, asked: Filter, chosen: Selection, images: np.ndarray
) -> np.ndarray:
    """The pictures in their order; equal ones as in the file."""
    annotations = collection.annotations
    if asked.order == "name":
        return np.array(sorted(images, key=annotations.file_names.__getitem__), np.int64)
    if asked.order in ("largest", "smallest"):
        values = annotations.image_sizes.prod(axis=1)[images]
        return images[np.argsort(values if asked.order == "smallest" else -values, kind="stable")]
    count = len(annotations.image_ids)
    if asked.order == "most objects":
        numbers = np.bincount(annotations.image_index[chosen.objects], minlength=count)
    elif asked.order == "most errors" and collection.sides:
        side = collection.sides[asked.side]
        objects = chosen.objects & (chosen.object_kinds > CORRECT)
        detections = chosen.detections & (side.errors.kinds > CORRECT)
        numbers = np.bincount(annotations.image_index[objects], minlength=count)
        numbers += np.bincount(side.found.image_index[detections], minlength=count)
    else:
        return images
    return images[np.argsort(-numbers[images], kind="stable")]
