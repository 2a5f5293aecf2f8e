# SPDX-License-Identifier: BSD-3-Clause
"""Necks: the feature pyramid and the levels on top of it.

Definitions, initialisation and parameter names are torchvision's
(ops/feature_pyramid_network.py), so its state dicts load unchanged. Paper:
https://arxiv.org/abs/1612.03144.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LastLevelMaxPool(nn.Module):
    """One level more: every second pixel of the coarsest (Faster R-CNN)."""

    def forward(self, pyramid: list[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the L + 1 levels, finest first."""
        return [*pyramid, F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """Two levels more by strided convolutions, from P5 if its width fits, else C5 (RetinaNet)."""

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
    """Top-down pyramid: each level is its own features plus the coarser level, twice as large.

    Args:
        in_channels: of each feature map, finest first.
        out_channels: of every level.
        extra_blocks: LastLevelMaxPool or LastLevelP6P7.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, extra_blocks: nn.Module
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        # Sequentials of one, because torchvision's parameter names have that level.
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
        """Maps (B, in_channels[l], H_l, W_l), finest first -> levels of out_channels each."""
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
