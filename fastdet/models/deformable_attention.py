# SPDX-License-Identifier: BSD-3-Clause
"""Attention to a few points of each map, which a token chooses itself (Deformable DETR).

A token samples `points` points near its reference on each level and for each head. The samples and
their weighted sums are one operator, `fastdet.ops.ms_deform_attn`; no matrix of all pairs exists.
Paper: https://arxiv.org/abs/2010.04159.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdet.models.transformer import check_heads
from fastdet.ops import ms_deform_attn

Shapes = Sequence[tuple[int, int]]  # height and width of each level


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention.

    Args:
        channels: D, of all tokens; a multiple of heads.
        heads: number of heads.
        levels: number of maps.
        points: that a head samples on each level.
        projects: whether values and results go through linear layers, as in the paper. D-FINE has
            none.
    """

    def __init__(
        self, channels: int, heads: int, levels: int, points: int, *, projects: bool = True
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj, self.output_proj = (
            nn.Linear(channels, channels) if projects else nn.Identity() for _ in range(2)
        )
        self._start()

    def _start(self) -> None:
        """At first a head looks in one direction of eight, one pixel farther for each point."""
        for layer in (self.value_proj, self.output_proj):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ways = torch.stack((angles.cos(), angles.sin()), dim=1)
        ways = ways / ways.abs().amax(dim=1, keepdim=True)  # (heads, 2), on a square
        steps = ways[:, None, None] * torch.arange(1, self.points + 1)[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        values: Tensor,
        shapes: Shapes,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Queries (B, Q, D) with their positions -> (B, Q, D).

        Args:
            queries: see above.
            references: (B, Q, L or 1, 2 or 4) on each level, in fractions of the whole map: a
                point, from which offsets count in pixels of the map; or a box, cxcywh, of whose
                half sides they are fractions, divided by the number of points.
            values: (B, N, D), the tokens of all maps.
            shapes: of the maps.
            mask: (B, N), True for pixels of the image; the others are zeros.
        """
        value = self.value_proj(values)
        if mask is not None:
            value = value.masked_fill(~mask[..., None], 0.0)
        split = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries).unflatten(2, (*split, 2))
        locations = self._locations(offsets, references[:, :, None, :, None], shapes)
        mixed = ms_deform_attn(
            value.unflatten(2, (self.heads, -1)),
            shapes,
            locations,
            self.attention_weights(queries).unflatten(2, split),
            softmax=True,
        )
        return self.output_proj(mixed)

    def _locations(self, offsets: Tensor, references: Tensor, shapes: Shapes) -> Tensor:
        """(B, Q, heads, L, P, 2) from references (B, Q, 1, L or 1, 1, 2 or 4)."""
        if references.shape[-1] == 2:
            # Filled on the device: a tensor of a list would be copied to a GPU each time.
            filled = [
                offsets.new_full((), side) for height, width in shapes for side in (width, height)
            ]
            return references + offsets / torch.stack(filled).view(-1, 1, 2)
        return references[..., :2] + offsets * (references[..., 2:] * (0.5 / self.points))
