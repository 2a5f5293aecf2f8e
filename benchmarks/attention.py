# SPDX-License-Identifier: BSD-3-Clause
"""Deformable attention: inputs as an encoder or a decoder gives them, and the grid_sample form."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.workloads import seeded

LEVELS = [(100, 152), (50, 76), (25, 38), (13, 19)]  # of an image of 800 x 1216 pixels
ENCODER_LEVELS = [(64, 64), (32, 32), (16, 16), (8, 8)]  # 5,440 queries
HEADS, CHANNELS, POINTS = 8, 32, 4


class Attention(NamedTuple):
    """The arguments of `ms_deform_attn`."""

    value: Tensor
    shapes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those with gradients."""
        return self.value, self.locations, self.weights

    def leaves(self, dtype: torch.dtype = torch.float32) -> "Attention":
        """A copy with gradients."""
        value, locations, weights = (t.detach().to(dtype).requires_grad_() for t in self.tensors)
        return Attention(value, self.shapes, locations, weights)


def attention(queries: int, small: bool = False) -> Attention:
    """Two images. Each point lies a few pixels of its level from its query's place.

    Args:
        queries: 5,440: an encoder's, the centres of the pixels of four levels, row by row. Any
            other number: a decoder's, anywhere in the image.
        small: an image of a hundredth of the pixels.
    """
    generator = seeded(21)
    shapes = [(-(-height // 10), -(-width // 10)) for height, width in LEVELS] if small else LEVELS
    if queries == sum(height * width for height, width in ENCODER_LEVELS):
        places = torch.cat([centres(*shape) for shape in ENCODER_LEVELS]).expand(2, -1, 2)
    else:
        places = torch.rand(2, queries, 2, generator=generator)
    rows = 2, queries, HEADS, len(shapes), POINTS
    pixels = sum(height * width for height, width in shapes)
    sides = torch.tensor([(width, height) for height, width in shapes])[:, None]  # (L, 1, 2)
    shifts = 3 * torch.randn(*rows, 2, generator=generator) / sides
    return Attention(
        torch.randn(2, pixels, HEADS, CHANNELS, generator=generator),
        shapes,
        places[:, :, None, None, None] + shifts,
        torch.randn(rows, generator=generator).flatten(3).softmax(3).view(rows),
    )


def centres(height: int, width: int) -> Tensor:
    """(height * width, 2), x and y as fractions of the sides."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(x + 0.5) / width, (y + 0.5) / height], 2).flatten(0, 1)


def by_grid_sample(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """What libraries run where they have no kernel, as on a CPU."""
    images, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    maps = value.split([height * width for height, width in shapes], 1)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * H, Q, L, P, 2)
    samples = [
        torch.nn.functional.grid_sample(
            level.flatten(2).transpose(1, 2).reshape(images * heads, channels, *shape),
            grids[:, :, i],
            align_corners=False,
        )
        for i, (level, shape) in enumerate(zip(maps, shapes, strict=True))
    ]  # each (B * H, D, Q, P)
    of_heads = weights.transpose(1, 2).reshape(images * heads, 1, queries, levels * points)
    total = (torch.stack(samples, 3).flatten(3) * of_heads).sum(3)
    return total.view(images, heads * channels, queries).transpose(1, 2).contiguous()
