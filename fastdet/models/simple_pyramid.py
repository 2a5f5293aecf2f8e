# SPDX-License-Identifier: BSD-3-Clause
"""The simple feature pyramid: four maps from the last map of a plain ViT (ViTDet).

A plain ViT has one resolution. Deconvolutions enlarge its last map by 4 and by 2, a max pool halves
it. Paper: https://arxiv.org/abs/2203.16527.
"""

import torch.nn.functional as F
from timm.layers import LayerNorm2d  # type: ignore[attr-defined]
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    """Maps of strides 4, 8, 16 and 32 from a body whose last map has stride 16.

    Args:
        body: images (B, 3, H, W), H and W multiples of 32 -> a list of maps; the last one is
            (B, channels, H / 16, W / 16).
        channels: of that map, a multiple of 4.
    """

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        half, quarter = channels // 2, channels // 4
        self.four_times = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.twice = nn.ConvTranspose2d(channels, half, 2, stride=2)
        self.channels = [quarter, half, channels, channels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> four maps with the numbers of `channels`, finest first."""
        x = self.body(images)[-1]
        return [self.four_times(x), self.twice(x), x, F.max_pool2d(x, 2)]
