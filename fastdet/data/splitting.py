# SPDX-License-Identifier: BSD-3-Clause
"""Dividing the images of one split by chance."""

from dataclasses import replace

import numpy as np

from fastdet.data.annotations import Annotations


def split_annotations(
    annotations: Annotations, fractions: dict[str, float], seed: int = 0
) -> dict[str, Annotations]:
    """Divides the images, with their annotations; each part keeps their order and their ids.

    Args:
        annotations: of one split.
        fractions: the share of each part, by its name; the sum is 1.
        seed: the same seed and the same file names give the same parts.

    Raises:
        ValueError: fewer images than parts.
    """
    count = len(annotations.image_ids)
    if count < len(fractions):
        raise ValueError(
            f"{annotations.path}: expected an image for each of {', '.join(fractions)}, got {count}"
        )
    names = sorted(range(count), key=lambda index: annotations.file_names[index])
    order = np.array(names)[np.random.default_rng(seed).permutation(count)]
    # At least one image each; what is left by the fractions.
    shares = np.cumsum([fraction * (count - len(fractions)) for fraction in fractions.values()])
    ends = np.round(shares).astype(int) + np.arange(1, len(fractions) + 1)
    parts = np.split(order, ends[:-1])
    return {
        name: _of_images(annotations, np.sort(part))
        for name, part in zip(fractions, parts, strict=True)
    }


def _of_images(annotations: Annotations, images: np.ndarray) -> Annotations:
    """The annotations of some images, by their positions."""
    new_index = np.full(len(annotations.image_ids), -1)
    new_index[images] = np.arange(len(images))
    rows = np.flatnonzero(new_index[annotations.image_index] >= 0)
    masks = annotations.masks
    return replace(
        annotations,
        image_ids=[annotations.image_ids[index] for index in images],
        file_names=[annotations.file_names[index] for index in images],
        image_sizes=annotations.image_sizes[images],
        annotation_ids=annotations.annotation_ids[rows],
        image_index=new_index[annotations.image_index[rows]],
        labels=annotations.labels[rows],
        boxes_xywh=annotations.boxes_xywh[rows],
        areas=annotations.areas[rows],
        crowd=annotations.crowd[rows],
        masks=None if masks is None else [masks[row] for row in rows],
    )
