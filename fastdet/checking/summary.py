# SPDX-License-Identifier: BSD-3-Clause
"""What a split holds: pictures, objects, their sizes, and the balance of the categories."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from fastdet.checking.categories import object_counts
from fastdet.checking.reading import CheckedSplit

SMALL, LARGE = 32**2, 96**2  # COCO's limits of an object's area, in pixels


@dataclass(frozen=True)
class Summary:
    """The numbers of one split; objects are annotations that are no crowds.

    Attributes:
        split, format, source: its name, and what was read.
        pictures, without_objects: counts.
        picture_sizes: "width x height" and how often, the most frequent first.
        objects, crowds: counts.
        objects_per_picture: smallest, median and largest number.
        small, medium, large: objects by area, with COCO's limits of 32² and 96².
        categories: objects of each.
    """

    split: str
    format: str
    source: str
    pictures: int
    without_objects: int
    picture_sizes: dict[str, int]
    objects: int
    crowds: int
    objects_per_picture: tuple[int, float, int]
    small: int
    medium: int
    large: int
    categories: dict[str, int]


def summary_of(split: CheckedSplit) -> Summary:
    """Counts what a split holds."""
    of = split.annotations
    objects = ~of.crowd
    number = np.bincount(of.image_index[objects], minlength=len(of.image_ids))
    per_picture = (
        (int(number.min()), float(np.median(number)), int(number.max()))
        if len(number)
        else (0, 0.0, 0)
    )
    area = of.areas[objects]
    sizes = Counter(f"{width} x {height}" for height, width in of.image_sizes.tolist())
    return Summary(
        split=split.name,
        format=split.source.format,
        source=str(of.path),
        pictures=len(of.image_ids),
        without_objects=int((number == 0).sum()),
        picture_sizes=dict(sizes.most_common()),
        objects=int(objects.sum()),
        crowds=int(of.crowd.sum()),
        objects_per_picture=per_picture,
        small=int((area < SMALL).sum()),
        medium=int(((area >= SMALL) & (area <= LARGE)).sum()),
        large=int((area > LARGE).sum()),
        categories=object_counts(split),
    )
