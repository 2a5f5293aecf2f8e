# SPDX-License-Identifier: BSD-3-Clause
"""The pictures of a finding, drawn small, with its boxes on them.

A picture that cannot be read is drawn as a grey one of the size that the annotations state. Boxes
are drawn inside the picture and never smaller than can be seen.
"""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image

from fastdet.checking.check import Report
from fastdet.checking.findings import Finding, Spot
from fastdet.checking.reading import CheckedSplit
from fastdet.evaluation.pictures import draw_boxes, shrunk_picture

SIDE = 320  # pixels of a drawing's longer side
VISIBLE = 6.0  # pixels of a drawn box


def drawing(report: Report, finding: Finding, most: int) -> Iterator[tuple[str, Image.Image]]:
    """The first pictures of a finding with their captions; boxes of one picture are on one drawing.

    Args:
        report: of the check.
        finding: any; one without pictures gives nothing.
        most: the number of drawings.
    """
    splits = {split.name: split for split in report.splits}
    grouped: dict[tuple[str, int], list[Spot]] = {}
    for spot in (one for place in finding.places for one in (place, *place.also[:3])):
        if spot.index is None or spot.split not in splits:
            continue
        key = (spot.split, spot.index)
        if key not in grouped and len(grouped) == most:
            continue
        grouped.setdefault(key, []).append(spot)
    for (name, index), spots in grouped.items():
        split = splits[name]
        more = f" (and {len(spots) - 1} more here)" if len(spots) > 1 else ""
        yield f"{name}: {spots[0]}{more}", _draw(report, split, index, spots)


def _draw(report: Report, split: CheckedSplit, index: int, spots: list[Spot]) -> Image.Image:
    height, width = (int(side) for side in split.annotations.image_sizes[index])
    path, reading = split.picture(index), asdict(report.options.pictures)
    shrunk = shrunk_picture(path, (height, width), SIDE, **reading)
    small = shrunk.picture
    width, height = small.size
    scale = np.array([width / shrunk.size[1], height / shrunk.size[0]] * 2)
    boxes = np.array([spot.box for spot in spots if spot.box is not None]).reshape(-1, 4)
    with np.errstate(all="ignore"):
        boxes = np.nan_to_num(boxes * scale)
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)  # flipped ones too
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    half = np.maximum((corners[:, 2:] - corners[:, :2]) / 2, VISIBLE / 2)
    limits = np.array([width - 1, height - 1])
    low = (middle - half).clip(0, (limits - VISIBLE).clip(min=0))
    high = np.maximum((middle + half).clip(0, limits), (low + VISIBLE).clip(max=limits))
    image = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
    drawn = torch.from_numpy(np.concatenate([low, high], axis=1))
    return draw_boxes(image, drawn, torch.zeros(len(drawn), dtype=torch.int64), None)
