# SPDX-License-Identifier: BSD-3-Clause
"""Mosaic: four pictures meet at a point of a square, as in YOLOv4 and YOLOX.

Cost: four resizes.
"""

import math
from collections.abc import Sequence

import torch

from fastdet.data.mixing.items import as_item, fitted, joined, placed
from fastdet.data.mixing.mixed import Item
from fastdet.data.transforms.canvas import canvas
from fastdet.data.transforms.scale_jitter import check_scale


class Mosaic:
    """Four items on one square canvas.

    A random point in the middle half of the square divides it. Each picture fills a quarter from
    that point outwards: what reaches beyond the square is cut off, and what it does not fill is
    grey. An object of which less than a tenth is left is no target.

    Args:
        size: side of the square in pixels.
        scale: range of the pictures' scale, the same for all four, log-uniform; at 1 the longer
            side of each picture is that of the square.

    Raises:
        ValueError: no size, or not 0 < low <= high.
    """

    items = 4

    def __init__(self, size: int = 640, scale: tuple[float, float] = (0.5, 1.5)) -> None:
        if size < 2:
            raise ValueError(f"size: expected a number of pixels from 2 on, got {size}")
        check_scale("scale", scale)
        self.size = size
        self.scale = scale

    def __call__(self, items: Sequence[Item]) -> Item:
        """The mosaic of four items."""
        size = self.size
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        factor = math.exp(low + (high - low) * torch.rand(()).item())
        y, x = ((0.25 + 0.5 * torch.rand(2)) * size).round().int().tolist()
        image, targets = canvas(items[0][0], size, size), []
        for number, item in enumerate(items):
            tile, target = fitted(as_item(item), size, size, factor)
            height, width = tile.shape[-2:]
            above, left = number < 2, number % 2 == 0
            shown = min(height, y if above else size - y), min(width, x if left else size - x)
            window = (height - shown[0] if above else 0, width - shown[1] if left else 0, *shown)
            place = y - shown[0] if above else y, x - shown[1] if left else x
            rows, columns = (slice(window[i], window[i] + shown[i]) for i in (0, 1))
            image[:, place[0] : place[0] + shown[0], place[1] : place[1] + shown[1]] = tile[
                :, rows, columns
            ]
            targets.append(placed(target, window, (size, size), place))
        return as_item((image, joined(*targets)))
