# SPDX-License-Identifier: BSD-3-Clause
"""Anchors of a feature pyramid, and the order that everything per anchor follows.

The order is level, row, column, cell (torchvision's). Anchors depend on the padded shape only, so
in eager mode they are made once for each shape; under a trace they are plain arange arithmetic.
All of them are exact in float32: integers and halves of integers.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdet.models.tracing import is_eager

Cells = tuple[tuple[tuple[float, ...], ...], ...]  # (L, cells of a location, 4)


class Anchors(NamedTuple):
    """Anchors of all levels, and where each level's part lies.

    Attributes:
        boxes: (A, 4) float32 xyxy in pixels of the padded image; A counts all levels.
        slots: (A,) int64, the place of each anchor in a padded (L, longest) layout, flattened.
        starts: (L,) int64, the first anchor of each level.
        longest: the number of anchors of the largest level.
    """

    boxes: Tensor
    slots: Tensor
    starts: Tensor
    longest: int


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


def pyramid_anchors(images: Tensor, features: Sequence[Tensor], cells: Cells) -> Anchors:
    """The anchors of `features` (B, C, H_l, W_l) over `images` (B, 3, H, W)."""
    image_size = (images.shape[2], images.shape[3])
    grids = tuple((feature.shape[2], feature.shape[3]) for feature in features)
    make = _kept_anchors if is_eager(images) else _make_anchors
    return make(image_size, grids, cells, images.device)


def in_anchor_order(outputs: Sequence[Tensor], columns: int) -> Tensor:
    """Maps of all levels as rows: L x (B, cells * columns, H_l, W_l) -> (B, A, columns).

    Views of channels_last maps, so the concatenation is the only copy.
    """
    rows = [output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, columns) for output in outputs]
    return torch.cat(rows, dim=1)


def top_of_each_level(scores: Tensor, anchors: Anchors, k: int) -> tuple[Tensor, Tensor]:
    """The k best anchors of each level, of all levels and images in one top-k.

    Args:
        scores: (B, A).
        anchors: in whose order the scores are.
        k: clipped to the length of the largest level.

    Returns:
        scores (B, L, k), best first, -inf where a level has less than k anchors, and the anchors'
        indices (B, L, k) int64, in range everywhere.
    """
    batch, total = scores.shape
    levels = anchors.starts.shape[0]
    padded = scores.new_full((batch, levels * anchors.longest), -torch.inf)
    padded = padded.index_copy(1, anchors.slots, scores).view(batch, levels, anchors.longest)
    top, place = padded.topk(min(k, anchors.longest), dim=2)
    return top, (place + anchors.starts[:, None]).clamp(max=total - 1)


@functools.lru_cache(maxsize=64)
def _kept_anchors(
    image_size: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
    cells: Cells,
    device: torch.device,
) -> Anchors:
    # Made under inference_mode they could not be used in training later.
    with torch.inference_mode(False):
        return _make_anchors(image_size, grids, cells, device)


def _make_anchors(
    image_size: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
    cells: Cells,
    device: torch.device,
) -> Anchors:
    boxes = [
        _level_anchors(image_size, grid, cell, device)
        for grid, cell in zip(grids, cells, strict=True)
    ]
    counts = [level.shape[0] for level in boxes]
    longest = max(counts)
    slots = [
        torch.arange(level * longest, level * longest + count, device=device)
        for level, count in enumerate(counts)
    ]
    starts = torch.tensor([sum(counts[:level]) for level in range(len(counts))], device=device)
    return Anchors(torch.cat(boxes), torch.cat(slots), starts, longest)


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
