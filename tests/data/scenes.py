# SPDX-License-Identifier: BSD-3-Clause
"""Painted items for augmentations: each object is a rectangle in the colour of its label.

So boxes, labels and masks can be compared with the pixels, wherever they go.
"""

from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

COLOURS = {1: (255, 0, 0), 2: (0, 255, 0), 3: (0, 0, 255), 4: (255, 0, 255)}
# Height, width, and objects as (label, x1, y1, x2, y2): apart, at each border, and none at all.
SCENES: list[tuple[int, int, list[tuple[int, int, int, int, int]]]] = [
    (90, 130, [(1, 20, 30, 61, 55), (2, 70, 10, 117, 80), (3, 0, 0, 25, 12)]),
    (64, 64, [(4, 40, 40, 64, 64), (1, 0, 50, 20, 64), (2, 10, 5, 60, 25)]),
    (151, 47, [(3, 5, 100, 47, 151), (1, 12, 20, 40, 45)]),
    (70, 71, []),
    (33, 100, [(2, 0, 0, 100, 33)]),
]
ALL = range(len(SCENES))


def painted(number: int, masks: bool = True) -> tuple[Any, dict[str, Any]]:
    """One scene as a data set gives it: a uint8 image and its target."""
    height, width, objects = SCENES[number]
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    visible = torch.zeros(len(objects), height, width, dtype=torch.uint8)
    for row, (label, x1, y1, x2, y2) in enumerate(objects):
        image[:, y1:y2, x1:x2] = torch.tensor(COLOURS[label], dtype=torch.uint8)[:, None, None]
        visible[row, y1:y2, x1:x2] = 1
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([corners for _, *corners in objects], dtype=torch.float32).reshape(-1, 4),
        format="XYXY",
        canvas_size=(height, width),
    )
    labels = torch.tensor([label for label, *_ in objects], dtype=torch.int64)
    target = {"boxes": boxes, "labels": labels, "image_id": number}
    if masks:
        target["masks"] = tv_tensors.Mask(visible)
    return tv_tensors.Image(image), target


class Painted(Dataset[Any]):
    """Some of the scenes, transformed."""

    def __init__(self, transforms: Any = None, numbers: Any = ALL, masks: bool = True):
        self.transforms = transforms
        self.numbers = list(numbers)
        self.masks = masks

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        item = painted(self.numbers[index], self.masks)
        return item if self.transforms is None else self.transforms(*item)


def extents(masks: torch.Tensor) -> torch.Tensor:
    """(G, 4): the boxes around the pixels of masks."""
    boxes = []
    for mask in masks.as_subclass(torch.Tensor):
        ys, xs = mask.nonzero(as_tuple=True)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def of_colour(image: torch.Tensor, label: int) -> torch.Tensor:
    """(H, W): which pixels of a float image have the colour of a label, blurred edges left out."""
    colour = torch.tensor(COLOURS[label])[:, None, None] / 255
    return ((image.as_subclass(torch.Tensor) - colour).abs() < 0.15).all(0)
