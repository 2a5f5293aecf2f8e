# SPDX-License-Identifier: BSD-3-Clause
"""How a query reads a pyramid: RT-DETR's and D-FINE's deformable attention around a box.

Version 2 (https://arxiv.org/abs/2407.17140) has another number of points at each level, and a
discrete form that reads single pixels, for runtimes without bilinear sampling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdet.models.deformable_attention import DeformableAttention, Shapes
from fastdet.ops import ms_deform_attn

NEVER = -1e4  # a logit that gives a point no weight in a softmax


class PyramidReading(DeformableAttention):
    """Deformable attention around the box of each query.

    Args:
        channels: of queries and pyramid; a multiple of heads.
        heads: of attention.
        points: for each level, the number of points that a query and head read.
        offset_scale: an offset, divided by the points of its level, moves a point by so many
            sides of the box.
        discrete: read the pixel that a point rounds to, without a gradient of its place.
        projects: see DeformableAttention.
    """

    scales: Tensor
    absent: Tensor

    def __init__(
        self,
        channels: int,
        heads: int,
        points: Sequence[int],
        *,
        offset_scale: float = 0.5,
        discrete: bool = False,
        projects: bool = True,
    ) -> None:
        most = max(points)
        super().__init__(channels, heads, len(points), most, projects=projects)
        self.discrete = discrete
        self.same = min(points) == most
        scales = torch.tensor([offset_scale / count for count in points])
        absent = torch.tensor([[i >= count for i in range(most)] for count in points])
        self.register_buffer("scales", scales[:, None, None], persistent=False)  # (L, 1, 1)
        self.register_buffer("absent", absent, persistent=False)  # (L, P)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        pyramid: Tensor,
        shapes: Shapes,
    ) -> Tensor:
        """Queries and their positions (B, Q, C) -> (B, Q, C).

        Args:
            queries, positions: see above.
            references: (B, Q, 4) boxes, cxcywh in fractions of the padded image.
            pyramid: (B, S, C), the pixels of all levels.
            shapes: (height, width) of each level.
        """
        placed, split = queries + positions, (self.heads, self.levels, self.points)
        centres, sides = references[:, :, None, None, None].chunk(2, dim=5)  # (B, Q, 1, 1, 1, 2)
        offsets = self.sampling_offsets(placed).unflatten(2, (*split, 2))
        places = centres + offsets * (self.scales.to(references.dtype) * sides)
        weights = self.attention_weights(placed).unflatten(2, split)
        if not self.same:
            weights = weights.masked_fill(self.absent, NEVER)
        values = self.value_proj(pyramid).unflatten(2, (self.heads, -1))
        places = _pixel_centres(places, shapes) if self.discrete else places
        return self.output_proj(ms_deform_attn(values, shapes, places, weights, softmax=True))


def points_of_levels(points: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """The number of points at each level, from one number or one for each.

    Raises:
        ValueError: another number of them than of levels.
    """
    points = (points,) * levels if isinstance(points, int) else tuple(points)
    if len(points) != levels:
        raise ValueError(f"points: expected one number for each of {levels} levels: {points}")
    return points


def _pixel_centres(places: Tensor, shapes: Shapes) -> Tensor:
    """Moves places (B, Q, H, L, P, 2) to centres of pixels, as RT-DETRv2's discrete sampling."""
    levels = []
    for level, (height, width) in zip(places.detach().unbind(3), shapes, strict=True):
        axes = []
        for place, side in zip(level.unbind(4), (width, height), strict=True):
            pixel = (place * side + 0.5).trunc().clamp(min=0, max=side - 1)
            axes.append((pixel + 0.5) / side)
        levels.append(torch.stack(axes, dim=4))
    return torch.stack(levels, dim=3)
