# SPDX-License-Identifier: BSD-3-Clause
"""Predictions and ground-truth boxes (gts), the inputs of the dense assigners."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """The tensors of assign_task_aligned, in its order."""

    scores: Tensor  # (B, A, C)
    boxes: Tensor  # (B, A, 4)
    points: Tensor  # (A, 2)
    gt_labels: Tensor  # (B, G)
    gt_boxes: Tensor  # (B, G, 4)
    gt_counts: Tensor

    def to(self, device: str, dtype: torch.dtype = torch.float64) -> "Sample":
        return moved(self, device, dtype)


def moved(sample: Any, device: str, dtype: torch.dtype) -> Any:
    """A named tuple of tensors on a device, with its floating tensors in a dtype."""
    tensors = (t.to(device, dtype if t.is_floating_point() else t.dtype) for t in sample)
    return type(sample)(*tensors)


def grid(side: int, strides: tuple[int, ...] = (8, 16, 32)) -> tuple[Tensor, Tensor]:
    """The points of a pyramid over a square image, (A, 2), and their strides, (A,)."""
    levels, strides_of = [], []
    for stride in strides:
        at = torch.arange(stride / 2, side, stride, dtype=torch.float64)
        y, x = torch.meshgrid(at, at, indexing="ij")
        levels.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides_of.append(torch.full((x.numel(),), float(stride), dtype=torch.float64))
    return torch.cat(levels), torch.cat(strides_of)


def sample(
    gts: int,
    points: Tensor | None = None,
    classes: int = 5,
    images: int = 3,
    seed: int = 0,
    extent: float = 128,
) -> Sample:
    """Boxes about their points; the first image has all gts, the second a few, the third none."""
    generator = torch.Generator().manual_seed(seed)
    points = grid(128)[0] if points is None else points

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = images, len(points)
    sides = 4 + 50 * rand(*shape, 2)
    centre = points + 10 * (rand(*shape, 2) - 0.5)
    corner, side = rand(images, gts, 2) * extent * 0.8, 4 + 60 * rand(images, gts, 2)
    return Sample(
        rand(*shape, classes),
        torch.cat([centre - sides / 2, centre + sides / 2], -1),
        points,
        torch.randint(classes, (images, gts), generator=generator),
        torch.cat([corner, corner + side], -1),
        torch.tensor([gts, gts // 3, 0, *[gts] * images][:images]),
    )
