# SPDX-License-Identifier: BSD-3-Clause
"""Checks that segmentation, box and area of an annotation agree."""

from typing import Any

import numpy as np

from fastdet.checking.findings import Finding
from fastdet.checking.reading import CheckedSplit, corners_of, spot_of
from fastdet.data.segmentations import areas, coco_mask

PIXELS, SHARE = 2.0, 0.05  # what a box may differ from its segmentation, plus this share of a side
AREA_SHARE, AREA_PIXELS = 0.1, 4.0


@np.errstate(over="ignore", invalid="ignore")  # boxes of absurd size
def segmentation_findings(split: CheckedSplit) -> list[Finding]:
    """Where box or area are not those of the segmentation; without one, of the box."""
    findings = [] if split.masked is None else [_off_box(split), _empty(split)]
    findings.append(_area_differs(split))
    return [finding for finding in findings if finding.count]


def _off_box(split: CheckedSplit) -> Finding:
    of: Any = split.masked
    around = np.asarray(coco_mask.toBbox(of.masks), np.float64).reshape(-1, 4)  # (A, 4) xywh
    corners = np.concatenate([around[:, :2], around[:, :2] + around[:, 2:]], axis=1)
    sizes = of.image_sizes[of.image_index][:, [1, 0, 1, 0]]
    given = corners_of(of).clip(0, sizes)  # a mask ends at the border
    away = np.abs(corners - given)
    side = np.concatenate([around[:, 2:], around[:, 2:]], axis=1)
    off = (away > PIXELS + SHARE * side).any(1) & (areas(of.masks) > 0)
    places = [
        spot_of(split.name, of, row, f"an edge is {away[row].max():.1f} pixels off")
        for row in np.flatnonzero(off).tolist()
    ]
    return Finding("segmentation-off-box", split.name, places)


def _empty(split: CheckedSplit) -> Finding:
    of: Any = split.masked
    rows = np.flatnonzero(areas(of.masks) == 0).tolist()
    return Finding("segmentation-empty", split.name, [spot_of(split.name, of, r) for r in rows])


def _area_differs(split: CheckedSplit) -> Finding:
    """Compared with the mask, where there are masks; else it may only not exceed the box.

    Crowds are left out: their area has no use, and in COCO itself it is only near to the mask's.
    """
    of = split.annotations if split.masked is None else split.masked
    box = of.boxes_xywh[:, 2:].clip(min=0).prod(axis=1)
    wrong = of.areas > box * (1 + AREA_SHARE) + AREA_PIXELS
    wrong |= (of.areas <= 0) & (box > 0)
    if of.masks is not None:
        mask = areas(of.masks).astype(np.float64)
        is_mask = np.abs(of.areas - mask) <= AREA_SHARE * mask + AREA_PIXELS
        is_box = np.abs(of.areas - box) <= AREA_SHARE * box + AREA_PIXELS
        wrong |= ~(is_mask | is_box)
    places = [
        spot_of(split.name, of, row, f"area {of.areas[row]:g}, width * height {box[row]:g}")
        for row in np.flatnonzero(wrong & (box > 0) & ~of.crowd).tolist()
    ]
    return Finding("area-differs", split.name, places)
