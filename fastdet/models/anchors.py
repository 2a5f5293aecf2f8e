# SPDX-License-Identifier: BSD-3-Clause
"""Anchors of a feature pyramid, and their order, which logits and deltas share.

The order is level, row, column, cell (torchvision's). Anchors depend only on the padded shape: in
eager mode they are made once for each shape, in a trace they are computed by arange. All of them
are exact in float32: integers and halves of integers.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastdet.ops.tracing import is_eager

Cells = tuple[tuple[tuple[float, ...], ...], ...]  # (L, cells of a location, 4)


def cell_anchors(
    sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> Cells:
    """Anchors around the origin for each level: aspect_ratios (height / width) outer, sizes inner.

    Args:
        sizes: square roots of the anchors' areas in pixels, for each level.
        aspect_ratios: the same for all levels.

    Follows torchvision's AnchorGenerator.generate_anchors, rounding included.
    """
    # NumPy, because a model may be built on the meta device or fake, where tensors have no values.
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))
    levels = []
    for level in sizes:
        scales = np.asarray(level, np.float32)
        w = ((1 / heights)[:, None] * scales).ravel()
        h = (heights[:, None] * scales).ravel()
        boxes = (np.stack((-w, -h, w, h), axis=1) / 2).round()
        levels.append(tuple(map(tuple, boxes.tolist())))
    return tuple(levels)


def pyramid_anchors(images: Tensor, features: Sequence[Tensor], cells: Cells) -> Tensor:
    """The anchors (A, 4) of `features` (B, C, H_l, W_l) over `images` (B, 3, H, W).

    float32 xyxy in pixels of the padded image; A counts all levels.

    Raises:
        ValueError: another number of levels in `cells`.
    """
    if len(cells) != len(features):
        raise ValueError(
            f"anchor_sizes: expected one for each of the backbone's {len(features)} levels, "
            f"got {len(cells)}"
        )
    image_size = (images.shape[2], images.shape[3])
    grids = tuple((feature.shape[2], feature.shape[3]) for feature in features)
    make = _kept_anchors if is_eager(images) else _make_anchors
    return make(image_size, grids, cells, images.device)


def in_anchor_order(outputs: Sequence[Tensor], columns: int) -> list[Tensor]:
    """Maps as rows: (B, cells * columns, H_l, W_l) -> (B, A_l, columns) for each level.

    Of channels_last maps they are views.
    """
    return [output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, columns) for output in outputs]


@functools.lru_cache(maxsize=64)
def _kept_anchors(
    image_size: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
    cells: Cells,
    device: torch.device,
) -> Tensor:
    # Made under inference_mode they could not be used in training later.
    with torch.inference_mode(False):
        return _make_anchors(image_size, grids, cells, device)


def _make_anchors(
    image_size: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
    cells: Cells,
    device: torch.device,
) -> Tensor:
    levels = [
        _level_anchors(image_size, grid, cell, device)
        for grid, cell in zip(grids, cells, strict=True)
    ]
    return torch.cat(levels)


def _level_anchors(
    image_size: tuple[int, int],
    grid: tuple[int, int],
    cell: tuple[tuple[float, ...], ...],
    device: torch.device,
) -> Tensor:
    # torchvision's stride is the quotient of the shapes, which a level of odd size makes larger.
    y = torch.arange(grid[0], device=device) * (image_size[0] // grid[0])
    x = torch.arange(grid[1], device=device) * (image_size[1] // grid[1])
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=2)[:, :, None]  # (H, W, 1, 4)
    return (shifts + torch.tensor(cell, dtype=torch.float32, device=device)).reshape(-1, 4)
