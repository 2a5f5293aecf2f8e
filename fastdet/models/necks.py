# SPDX-License-Identifier: BSD-3-Clause
"""Necks: the feature pyramid and its extra levels.

Definitions, initialisation and parameter names are torchvision's
(ops/feature_pyramid_network.py), so torchvision's state dicts load unchanged. Paper:
https://arxiv.org/abs/1612.03144.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LastLevelMaxPool(nn.Module):
    """Adds one level: every second pixel of the coarsest level (Faster R-CNN)."""

    def forward(self, pyramid: list[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the L + 1 levels, finest first."""
        return [*pyramid, F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """Adds two levels by convolutions of stride 2 (RetinaNet, FCOS, ATSS).

    Their input is P5, the coarsest level of the pyramid, if in_channels == out_channels; else C5,
    the coarsest map of the body.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            _init_conv(conv)
        self.use_p5 = in_channels == out_channels

    def forward(self, pyramid: list[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the L + 2 levels, finest first."""
        p6 = self.p6(pyramid[-1] if self.use_p5 else features[-1])
        return [*pyramid, p6, self.p7(F.relu(p6))]


class FeaturePyramidNetwork(nn.Module):
    """Top-down pyramid: each level is the lateral map plus the coarser level, upsampled.

    The upsampling is a nearest-neighbour resize.

    Args:
        in_channels: number of channels of each feature map, finest first.
        out_channels: number of channels of every level.
        extra_blocks: LastLevelMaxPool or LastLevelP6P7.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, extra_blocks: nn.Module
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        # Each layer is in a Sequential, so that the parameter names are torchvision's.
        self.inner_blocks = nn.ModuleList(
            nn.Sequential(_init_conv(nn.Conv2d(channels, out_channels, 1)))
            for channels in in_channels
        )
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(_init_conv(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
            for _ in in_channels
        )
        self.extra_blocks = extra_blocks

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[l], H_l, W_l), finest first -> levels with out_channels channels."""
        inner = [block(x) for block, x in zip(self.inner_blocks, features, strict=True)]
        for level in range(len(inner) - 2, -1, -1):
            coarser = F.interpolate(inner[level + 1], size=inner[level].shape[-2:], mode="nearest")
            inner[level] = inner[level] + coarser
        pyramid = [block(x) for block, x in zip(self.layer_blocks, inner, strict=True)]
        return self.extra_blocks(pyramid, features)


def _init_conv(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
