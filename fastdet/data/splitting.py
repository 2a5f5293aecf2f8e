# SPDX-License-Identifier: BSD-3-Clause
"""Dividing the images of a data set into splits, the same on every machine.

Images are taken in the order of a hash of their file names, so the result depends neither on the
order of the source nor on a random generator. Where the sizes allow, every class is in every split.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from fastdet.data.annotations import Annotations


def split_annotations(
    annotations: Annotations, fractions: Mapping[str, float], seed: int = 0
) -> dict[str, Annotations]:
    """Divides the images of one split.

    Args:
        annotations: of the whole.
        fractions: of the images, by the name of the new split. They sum to 1, and each split gets
            at least one image.
        seed: another one gives other splits.

    Returns:
        The splits, in the order of `fractions`. A class that has fewer images than there are splits
        is in the larger ones.

    Raises:
        ValueError: fractions that are not above 0 or do not sum to 1; fewer images than splits.
    """
    counts = _counts(annotations, fractions)
    classes_of = _classes_of_images(annotations)
    free = dict.fromkeys(_by_hash(annotations.file_names, seed))  # an ordered set
    images_of: dict[int, list[int]] = {}
    for image in free:
        for label in classes_of[image]:
            images_of.setdefault(label, []).append(image)
    # Rare classes first: an image of a rare class often has a frequent one too.
    rare_first = sorted(images_of, key=lambda label: (len(images_of[label]), label))

    chosen: dict[str, list[int]] = {name: [] for name in counts}
    for name in sorted(counts, key=lambda name: -counts[name]):
        covered: set[int] = set()
        for label in rare_first:
            image = next((image for image in images_of[label] if image in free), None)
            if label not in covered and image is not None and len(chosen[name]) < counts[name]:
                del free[image]
                chosen[name].append(image)
                covered |= classes_of[image]
    rest = iter(free)
    for name, count in counts.items():
        chosen[name] += [next(rest) for _ in range(count - len(chosen[name]))]
    return {name: annotations.of_images(images) for name, images in chosen.items()}


def _counts(annotations: Annotations, fractions: Mapping[str, float]) -> dict[str, int]:
    """How many images each split gets: its fraction, rounded; the largest takes the rest."""
    if not all(fraction > 0 for fraction in fractions.values()) or not math.isclose(
        sum(fractions.values()), 1
    ):
        raise ValueError(f"fractions: expected numbers above 0 that sum to 1, got {fractions}")
    images = len(annotations.image_ids)
    if images < len(fractions):
        raise ValueError(
            f"{annotations.path}: expected an image or more for each of {', '.join(fractions)}, "
            f"got {images} in all"
        )
    counts = {name: max(1, round(images * fraction)) for name, fraction in fractions.items()}
    while (excess := sum(counts.values()) - images) != 0:
        largest = max(counts, key=lambda name: counts[name])
        counts[largest] -= 1 if excess > 0 else excess
    return counts


def _by_hash(file_names: list[str], seed: int) -> list[int]:
    """The positions of the images, in the order of a hash of their names."""
    keys = [
        hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest()
        for name in file_names
    ]
    return sorted(range(len(keys)), key=lambda index: keys[index])


def _classes_of_images(annotations: Annotations) -> list[set[int]]:
    classes: list[set[int]] = [set() for _ in annotations.image_ids]
    pairs = np.unique(np.column_stack([annotations.image_index, annotations.labels]), axis=0)
    for image, label in pairs.tolist():
        classes[image].add(label)
    return classes
