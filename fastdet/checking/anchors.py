# SPDX-License-Identifier: BSD-3-Clause
"""Which objects the anchors of a detector reach at the size that it is trained with.

Anchors of one size lie on a grid, so the one with the highest IoU is that whose place is nearest to
the box's centre: it is computed, without a list of all anchors (tested against all of them). A
detector with one square for each location has no anchors to match; there an object needs a location
inside it. Cost: 0.1 s for 10^5 objects, beside 0.1 s for the detector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastdet.checking.findings import Finding, Spot
from fastdet.checking.reading import CheckedSplit
from fastdet.checking.summary import LARGE, SMALL
from fastdet.data.annotations import Annotations
from fastdet.models import MODELS, Detector
from fastdet.models.backbones import feature_maps
from fastdet.models.border import Border

ENOUGH = 0.9


@dataclass(frozen=True)
class Grid:
    """The anchors of a level.

    Attributes:
        stride: of the level in pixels of the padded image.
        cells: (C, 4) xyxy around a location.
    """

    stride: int
    cells: np.ndarray


@dataclass(frozen=True)
class Reach:
    """How many objects of a group are reached.

    Attributes:
        kind: "all", "size" or "category".
        group: "all", a size by area, or the name of a category.
        objects: how many there are.
        at_50, at_70: the fraction with an anchor of an IoU of at least 0.5 and 0.7; of a detector
            without anchors both are the fraction with a location inside.
        median_size: the median square root of the area, in pixels that the network sees.
    """

    kind: str
    group: str
    objects: int
    at_50: float
    at_70: float
    median_size: float


@dataclass(frozen=True)
class AnchorReach:
    """The reach of a detector's anchors in a split.

    Attributes:
        split, model: names.
        min_size, max_size: of the training.
        strides: of the levels, in pixels that the network sees.
        has_anchors: False where there is one square for each location.
        rows: of all objects, by size and by category.
    """

    split: str
    model: str
    min_size: int
    max_size: int
    strides: list[int]
    has_anchors: bool
    rows: list[Reach]


def anchor_reach(
    split: CheckedSplit, name: str, model: Detector, grids: Sequence[Grid]
) -> tuple[AnchorReach, Finding]:
    """How many objects of a split the anchors reach, and where they are if these are too few."""
    of, border = split.annotations, model.border
    corners = split.corners.clip(0, np.tile(split.limits, 2))
    good = ~of.crowd & (split.limits > 0).all(1) & (corners[:, 2:] > corners[:, :2]).all(1)
    rows = np.flatnonzero(good)
    seen, padded = network_boxes(corners[rows], split.limits[rows], border)
    has_anchors = max(len(grid.cells) for grid in grids) > 1
    best = best_iou(seen, padded, grids) if has_anchors else has_location(seen, padded, grids[0])
    table = _table(of, rows, best, np.sqrt((seen[:, 2:] - seen[:, :2]).prod(axis=1)))
    size = border.min_size if isinstance(border.min_size, int) else border.min_size[-1]
    strides = [grid.stride for grid in grids]
    reach = AnchorReach(split.name, name, size, border.max_size, strides, has_anchors, table)

    missed = np.flatnonzero(best < 0.5)
    places: list[Spot] = []
    if len(missed) > (1 - ENOUGH) * len(rows):
        details = [f"best IoU {iou:.2f}" if has_anchors else "" for iou in best[missed]]
        places = list(map(split.spot, rows[missed].tolist(), details))
    detail = f"{name} reaches {table[0].at_50:.0%} of {len(rows)} objects" if table else ""
    kind = "anchors-miss-objects" if has_anchors else "points-miss-objects"
    return reach, Finding(kind, split.name, places, detail)


def _table(of: Annotations, rows: np.ndarray, best: np.ndarray, side: np.ndarray) -> list[Reach]:
    groups = {("all", "all"): np.ones(len(rows), bool), **_sizes(of.areas[rows])}
    for label, category in enumerate(of.names, 1):
        groups["category", category] = of.labels[rows] == label
    return [
        Reach(
            *group,
            int(chosen.sum()),
            float((best[chosen] >= 0.5).mean()),
            float((best[chosen] >= 0.7).mean()),
            float(np.median(side[chosen])),
        )
        for group, chosen in groups.items()
        if chosen.any()
    ]


def _sizes(area: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    small, large = area < SMALL, area > LARGE
    return {
        ("size", "small"): small,
        ("size", "medium"): ~(small | large),
        ("size", "large"): large,
    }


def grids_of(name: str, min_size: int, max_size: int) -> tuple[Detector, list[Grid]]:
    """A detector without weights, and its anchors.

    Raises:
        ValueError: a size below 1; a family that has neither anchors nor locations.
    """
    side = 1024  # which the strides of all levels divide
    with torch.device("meta"), torch.no_grad():  # shapes without values: nothing is loaded or run
        # The strides are the same with every backbone that has a pyramid.
        model = MODELS[name]("resnet18", num_classes=2, min_size=min_size, max_size=max_size)
        backbone = model.get_submodule("backbone")
        maps = feature_maps(backbone(torch.empty(1, 3, side, side)))
    cells = model.anchor_cells()
    if cells is None:
        raise ValueError(f"model: expected a detector with anchors or locations, got {name}")
    return model, [
        Grid(side // level.shape[2], np.asarray(cell, np.float64))
        for level, cell in zip(maps, cells, strict=True)
    ]


def network_boxes(
    corners: np.ndarray, limits: np.ndarray, border: Border
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in the pixels that the network sees.

    Args:
        corners: (N, 4) xyxy in pixels of the pictures.
        limits: (N, 2) their widths and heights.
        border: of the detector.

    Returns:
        (N, 4) xyxy, and (N, 2) width and height of the padded image.
    """
    sizes, inverse = np.unique(limits, axis=0, return_inverse=True)
    resized = np.array([_resized(border, *size) for size in sizes.tolist()]).reshape(-1, 2)
    scaled = resized[inverse.reshape(-1)]
    padded = -(-scaled // border.size_divisor) * border.size_divisor
    return corners * np.tile(scaled / limits, 2), padded


def best_iou(boxes: np.ndarray, padded: np.ndarray, grids: Sequence[Grid]) -> np.ndarray:
    """(N,): the highest IoU of each box (N, 4) with an anchor of its padded image (N, 2)."""
    best = np.zeros(len(boxes))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for grid in grids:
        for cell in grid.cells:
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - (cell[:2] + cell[2:]) / 2
            place = _nearest(centre, padded, grid.stride)
            upper = np.minimum(boxes[:, 2:], place + cell[2:])
            common = (upper - np.maximum(boxes[:, :2], place + cell[:2])).clip(min=0).prod(axis=1)
            size = (cell[2:] - cell[:2]).prod()
            iou = common / (area + size - common)
            best[iou > best] = iou[iou > best]
    return best


def has_location(boxes: np.ndarray, padded: np.ndarray, grid: Grid) -> np.ndarray:
    """(N,) 1.0 where a location of the grid is inside a box, else 0.0."""
    place = _nearest((boxes[:, :2] + boxes[:, 2:]) / 2, padded, grid.stride)
    inside = np.all((place >= boxes[:, :2]) & (place <= boxes[:, 2:]), axis=1)
    return np.where(inside, 1.0, 0.0)


def _nearest(points: np.ndarray, padded: np.ndarray, stride: int) -> np.ndarray:
    """(N, 2): the locations nearest to points."""
    number = -(-padded // stride)
    step = padded // number  # as the detector computes it: less than the stride at odd sizes
    return (points / step).round().clip(0, number - 1) * step


def _resized(border: Border, width: int, height: int) -> tuple[int, int]:
    """Width and height after the resize of `Border.pad` in eval mode."""
    shortest = border.min_size if isinstance(border.min_size, int) else border.min_size[-1]
    scale = min(shortest / min(height, width), border.max_size / max(height, width))
    return max(1, int(width * scale)), max(1, int(height * scale))
