# SPDX-License-Identifier: BSD-3-Clause
"""The anchors of a feature pyramid. Logits and deltas have the same order as the anchors.

The order is level, row, column, cell, as in torchvision. A cell is an anchor of a location. Anchors
depend only on the padded shape: in eager mode they are computed once for each shape and kept; in a
trace they are computed with arange. With the cells of `cell_anchors` all coordinates are integers,
which are exact in float32.
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
    """The anchors centred at the origin, for each level.

    Args:
        sizes: for each level, the square roots of the anchors' areas in pixels.
        aspect_ratios: height / width, the same for all levels. The order is: for each aspect ratio,
            each size.

    Follows torchvision's AnchorGenerator.generate_anchors, also in rounding to integers.
    """
    # NumPy, because a model may be built with meta or fake tensors, which have no values.
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
    """The anchors (A, 4) of all levels of `features` (B, C, H_l, W_l), for `images` (B, C, H, W).

    float32 xyxy in pixels of the padded image.

    Raises:
        ValueError: `cells` and `features` have different numbers of levels.
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
    """Reshapes maps to rows: (B, cells * columns, H_l, W_l) -> (B, A_l, columns) for each level.

    The rows of channels_last maps are views.
    """
    return [output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, columns) for output in outputs]


@functools.lru_cache(maxsize=64)
def _kept_anchors(
    image_size: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
    cells: Cells,
    device: torch.device,
) -> Tensor:
    # Tensors that are made under inference_mode cannot be used in training later.
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
    # As in torchvision the stride is the quotient of the sizes. It is less than 2^l if the size of
    # a level was rounded up, because the finer level has an odd size.
    y = torch.arange(grid[0], device=device) * (image_size[0] // grid[0])
    x = torch.arange(grid[1], device=device) * (image_size[1] // grid[1])
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=2)[:, :, None]  # (H, W, 1, 4)
    return (shifts + torch.tensor(cell, dtype=torch.float32, device=device)).reshape(-1, 4)
