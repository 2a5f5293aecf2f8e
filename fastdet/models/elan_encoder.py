# SPDX-License-Identifier: BSD-3-Clause
"""D-FINE's encoder, a neck: RT-DETR's, whose levels are joined by lighter and deeper blocks.

Paper: https://arxiv.org/abs/2410.13842. A block keeps the results of all its steps, as GELAN does
(https://arxiv.org/abs/2402.13616); levels are halved by a depthwise convolution. Definitions and
defaults are those of the authors' code.
"""

import torch
from torch import Tensor, nn

from fastdet.models.hybrid_encoder import ConvNorm, CSPBlock, HybridEncoder


class ELANBlock(nn.Module):
    """A 1x1 convolution of four inputs: two of the map, and two steps that begin at the second.

    A step is a CSP block and a 3x3 convolution. The authors compute the first two inputs by one
    convolution, whose result they split.

    Args:
        in_channels, out_channels: of the maps.
        hidden: channels of the steps.
        blocks: RepVGG blocks of a CSP block.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, 1, activation=nn.SiLU())
        self.second = ConvNorm(in_channels, out_channels, 1, activation=nn.SiLU())
        self.steps = nn.ModuleList(
            nn.Sequential(
                CSPBlock(channels, hidden, hidden, blocks),
                ConvNorm(hidden, hidden, 3, activation=nn.SiLU()),
            )
            for channels in (out_channels, hidden)
        )
        total = 2 * (out_channels + hidden)
        self.last = ConvNorm(total, out_channels, 1, activation=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        maps = [self.first(x), self.second(x)]
        for step in self.steps:
            maps.append(step(maps[-1]))
        return self.last(torch.cat(maps, dim=1))


class ELANEncoder(HybridEncoder):
    """D-FINE's neck; arguments as of HybridEncoder. `expansion` counts in half the out_channels."""

    def narrowing(self) -> nn.Module:
        """A 1x1 convolution without an activation."""
        return ConvNorm(self.out_channels, self.out_channels, 1)

    def joining(self, expansion: float, blocks: int) -> nn.Module:
        """An ELANBlock."""
        hidden = int(expansion * self.out_channels // 2)
        return ELANBlock(2 * self.out_channels, self.out_channels, hidden, blocks)

    def halving(self) -> nn.Module:
        """A 1x1 convolution, and a depthwise one of stride 2."""
        channels = self.out_channels
        return nn.Sequential(
            ConvNorm(channels, channels, 1),
            ConvNorm(channels, channels, 3, 2, groups=channels),
        )
