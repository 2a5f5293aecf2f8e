# SPDX-License-Identifier: BSD-3-Clause
"""How well the anchors of a detector fit the boxes of a data set, and sizes that fit better.

A box is compared with an anchor of the same centre: that is the best IoU it can reach at any place.
Between the places of a fine grid little is lost. Sizes keep their doubling from level to level,
since the strides double; only their common factor is chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np

from fastdet.data import DetectionDataset
from fastdet.models.anchors import Cells
from fastdet.models.border import Border

REACHED = 0.5  # IoU
SMALLEST = 4  # pixels
FACTORS = tuple(2 ** (step / 4) for step in range(-12, 9))  # 1/8 .. 4


@dataclass(frozen=True)
class AnchorFit:
    """How anchors fit boxes.

    Attributes:
        sizes: for each level, the square root of the smallest anchor's area, in pixels.
        reached: share of the boxes that have an IoU of 0.5 or more with an anchor at their centre.
        mean_iou: mean over the boxes of the best IoU.
    """

    sizes: tuple[float, ...]
    reached: float
    mean_iou: float


def matched_by_iou(cells: Cells | None) -> TypeGuard[Cells]:
    """Whether a detector has several anchors at a location, whose sizes then matter.

    With one square at a location, the assignment goes by places or predictions.
    """
    return cells is not None and all(len(level) > 1 for level in cells)


def boxes_in_training(dataset: DetectionDataset, border: Border) -> np.ndarray:
    """(N, 2) width and height of the boxes of a data set, in pixels after the resizing."""
    boxes_wh, image_sizes = dataset.box_and_image_sizes()
    if border.fixed_size is not None:
        return boxes_wh * (np.array(border.fixed_size) / image_sizes)[:, ::-1]
    min_size = border.min_size if isinstance(border.min_size, int) else border.min_size[-1]
    scale = np.minimum(min_size / image_sizes.min(1), border.max_size / image_sizes.max(1))
    return boxes_wh * scale[:, None]


def object_scale(dataset: DetectionDataset, border: Border) -> float | None:
    """Pixels after the resizing per pixel of a picture: the median over the boxes; None of none."""
    sizes, of_box = np.unique(dataset.box_and_image_sizes()[1], axis=0, return_inverse=True)
    if not len(sizes) or not sizes.all():
        return None
    scales = np.array([border.scale_of(height, width) for height, width in sizes.tolist()])
    return float(np.median(scales[of_box]))


def anchor_fit(cells: Cells, boxes_wh: np.ndarray) -> AnchorFit:
    """How anchors fit boxes.

    Args:
        cells: the anchors of a location at each level.
        boxes_wh: (N, 2) in pixels after resizing, at least one.
    """
    levels = [np.array(level)[:, 2:] - np.array(level)[:, :2] for level in cells]
    best = np.zeros(len(boxes_wh))
    for anchor in np.concatenate(levels):
        shared = np.minimum(boxes_wh, anchor).prod(1)
        best = np.maximum(best, shared / (boxes_wh.prod(1) + anchor.prod() - shared))
    sizes = tuple(float(round(math.sqrt(level.prod(1).min()))) for level in levels)
    return AnchorFit(sizes, float((best >= REACHED).mean()), float(best.mean()))


def fitting_sizes(cells: Cells, boxes_wh: np.ndarray) -> AnchorFit:
    """The best fit, by the mean IoU, of the anchors times one factor; see `anchor_fit`."""
    own, fits = anchor_fit(cells, boxes_wh).sizes, []
    for factor in FACTORS:
        sizes = tuple(float(round(size * factor)) for size in own)
        if sizes[0] >= SMALLEST:
            scaled = tuple(
                tuple(tuple(side * factor for side in cell) for cell in level) for level in cells
            )
            fits.append(replace(anchor_fit(scaled, boxes_wh), sizes=sizes))
    return max(fits, key=lambda fit: fit.mean_iou)


def fit_line(now: AnchorFit, best: AnchorFit, boxes_wh: np.ndarray) -> str:
    """Says how the anchors fit, and how those of `--anchor-sizes auto` would."""
    median = np.median(np.sqrt(boxes_wh.prod(1)))
    return (
        f"anchors of {_numbers(now.sizes)} pixels: IoU {REACHED} or more for {now.reached:.0%} of "
        f"the boxes, whose median is {median:.0f} pixels; of {_numbers(best.sizes)} "
        f"(--anchor-sizes auto): {best.reached:.0%}"
    )


def _numbers(sizes: Sequence[float]) -> str:
    return " ".join(f"{size:g}" for size in sizes)
