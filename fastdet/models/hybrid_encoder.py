# SPDX-License-Identifier: BSD-3-Clause
"""RT-DETR's hybrid encoder, a neck: attention on the coarsest map, convolutions between the maps.

Paper: https://arxiv.org/abs/2304.08069. A 1x1 convolution gives each map the same width. The pixels
of the coarsest map attend to each other (AIFI). A top-down and a bottom-up path (CCFM) then join
neighbour levels by CSP blocks, whose 3x3 convolutions are RepVGG blocks: in eval mode on a CPU the
engine merges the branches of such a block into one convolution. D-FINE's encoder
(`elan_encoder.py`) replaces what joins and halves levels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastdet.models.batch_norms import AnySizeBatchNorm2d
from fastdet.models.transformer import Attention, EncoderLayer, FeedForward


@fx.wrap  # it reads shapes, which a symbolic trace does not have
def grid_positions(features: Tensor, temperature: float) -> Tensor:
    """Sine position embedding of the pixels of a map.

    Args:
        features: (B, C, H, W); only shape, dtype and device are used.
        temperature: ratio of the longest wave to the shortest.

    Returns:
        (H * W, C), row by row: sin and cos of the row, then sin and cos of the column, each C // 4
        channels; channels that remain are 0. The same as in transformers' RT-DETR.
    """
    channels, height, width = features.shape[1:]
    quarter = channels // 4
    dtype = torch.promote_types(features.dtype, torch.float32)
    numbers = {"device": features.device, "dtype": dtype}
    frequencies = temperature ** (-torch.arange(quarter, **numbers) / quarter)
    rows = torch.arange(height, **numbers)[:, None, None] * frequencies  # (H, 1, C // 4)
    columns = torch.arange(width, **numbers)[:, None] * frequencies  # (W, C // 4)
    rows, columns = (x.expand(height, width, quarter) for x in (rows, columns))
    waves = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=2)
    return F.pad(waves, (0, channels - 4 * quarter)).flatten(0, 1).to(features.dtype)


class ConvNorm(nn.Sequential):
    """A convolution without bias, a BatchNorm and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        activation: nn.Module | None = None,
        groups: int = 1,
    ) -> None:
        padding = kernel_size // 2
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        norm = AnySizeBatchNorm2d(out_channels)
        super().__init__(conv, norm, *([] if activation is None else [activation]))


class RepVGGBlock(nn.Module):
    """The sum of a 3x3 and a 1x1 convolution, each with its norm, and an activation.

    https://arxiv.org/abs/2101.03697
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = ConvNorm(channels, channels, 3)
        self.point = ConvNorm(channels, channels, 1)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return self.activation(self.wide(x) + self.point(x))


class CSPBlock(nn.Module):
    """Two 1x1 convolutions of the input; RepVGG blocks follow one of them; then their sum.

    Args:
        in_channels, out_channels: of the maps.
        hidden: channels of the two branches.
        blocks: number of RepVGG blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, hidden, 1, activation=nn.SiLU())
        self.second = ConvNorm(in_channels, hidden, 1, activation=nn.SiLU())
        self.blocks = nn.Sequential(*(RepVGGBlock(hidden) for _ in range(blocks)))
        widens = hidden != out_channels
        self.last = (
            ConvNorm(hidden, out_channels, 1, activation=nn.SiLU()) if widens else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self.last(self.blocks(self.first(x)) + self.second(x))


class SelfAttention(Attention):
    """Attention of tokens to each other."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Tensor, positions: Tensor
    ) -> Tensor:
        """Tokens and their positions (B, N, D), or positions (N, D) -> (B, N, D)."""
        placed = tokens + positions
        return super().forward(placed, placed, tokens)


class AIFI(nn.Module):
    """Attention between the pixels of one map.

    Args:
        channels: of the map.
        layers: number of encoder layers.
        heads: of attention.
        feedforward: hidden width of the layers.
        temperature: see `grid_positions`.
    """

    def __init__(
        self, channels: int, layers: int, heads: int, feedforward: int, temperature: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(
                SelfAttention(channels, heads),
                FeedForward(channels, feedforward, activation="gelu"),
                channels,
            )
            for _ in range(layers)
        )
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        positions = grid_positions(x, self.temperature)
        rows = x.flatten(2).transpose(1, 2)  # (B, H * W, channels)
        for layer in self.layers:
            rows = layer(rows, positions)
        # Not transposed first: a batch of one image would have a stride that is not channels_last.
        return rows.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class HybridEncoder(nn.Module):
    """RT-DETR's neck.

    Args:
        in_channels: number of channels of each map, finest first.
        out_channels: number of channels of every level.
        extra_blocks: as of the feature pyramid; None for no extra levels.
        layers: encoder layers on the coarsest map.
        heads: of their attention; fewer if they do not divide out_channels.
        feedforward: hidden width of these layers; None: 4 * out_channels.
        expansion: width of the CSP blocks, relative to out_channels.
        blocks: RepVGG blocks of a CSP block.
        temperature: see `grid_positions`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        *,
        layers: int = 1,
        heads: int = 8,
        feedforward: int | None = None,
        expansion: float = 1.0,
        blocks: int = 3,
        temperature: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.num_maps = len(in_channels)
        self.laterals = nn.ModuleList(
            ConvNorm(channels, out_channels, 1) for channels in in_channels
        )
        width = 4 * out_channels if feedforward is None else feedforward
        heads = math.gcd(out_channels, heads)
        self.attention = AIFI(out_channels, layers, heads, width, temperature)
        between = range(len(in_channels) - 1)
        # From the coarsest level to the finest, and back.
        self.narrow = nn.ModuleList(self.narrowing() for _ in between)
        self.top_down = nn.ModuleList(self.joining(expansion, blocks) for _ in between)
        self.halve = nn.ModuleList(self.halving() for _ in between)
        self.bottom_up = nn.ModuleList(self.joining(expansion, blocks) for _ in between)
        self.extra_blocks = extra_blocks

    def narrowing(self) -> nn.Module:
        """What a level goes through before a finer one takes it."""
        return ConvNorm(self.out_channels, self.out_channels, 1, activation=nn.SiLU())

    def joining(self, expansion: float, blocks: int) -> nn.Module:
        """What makes one level of two that are concatenated."""
        hidden = int(self.out_channels * expansion)
        return CSPBlock(2 * self.out_channels, self.out_channels, hidden, blocks)

    def halving(self) -> nn.Module:
        """What halves a level for a coarser one."""
        return ConvNorm(self.out_channels, self.out_channels, 3, 2, activation=nn.SiLU())

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[l], H_l, W_l), finest first -> levels with out_channels channels."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        inner = [self.attention(maps[-1])]  # coarsest first
        for x, narrow, join in zip(reversed(maps[:-1]), self.narrow, self.top_down, strict=True):
            inner[-1] = narrow(inner[-1])
            coarser = F.interpolate(inner[-1], size=x.shape[-2:], mode="nearest")
            inner.append(join(torch.cat([coarser, x], dim=1)))
        inner.reverse()
        levels = [inner[0]]
        for x, halve, join in zip(inner[1:], self.halve, self.bottom_up, strict=True):
            finer = halve(levels[-1])[..., : x.shape[-2], : x.shape[-1]]  # halving rounds up
            levels.append(join(torch.cat([finer, x], dim=1)))
        return levels if self.extra_blocks is None else self.extra_blocks(levels, features)
