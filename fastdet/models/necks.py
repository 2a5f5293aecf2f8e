# SPDX-License-Identifier: BSD-3-Clause
"""Necks: the feature pyramid, its extra levels, and two necks with further paths.

A neck takes the last maps of a backbone, finest first, and gives levels of equal width. The
definition, initialisation and parameter names of the feature pyramid (FPN) are torchvision's
(ops/feature_pyramid_network.py), so torchvision's state dicts load unchanged. Papers: FPN
https://arxiv.org/abs/1612.03144, PAFPN https://arxiv.org/abs/1803.01534, BiFPN
https://arxiv.org/abs/1911.09070.

Each neck has the attributes `out_channels` and `num_maps`, the number of maps that it takes. A
module of extra levels has the attribute `num_levels`, the number of levels that it adds.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastdet.models.batch_norms import AnySizeBatchNorm2d
from fastdet.models.elan_encoder import ELANEncoder
from fastdet.models.hybrid_encoder import HybridEncoder


class LastLevelMaxPool(nn.Module):
    """Adds one level: every second pixel of the coarsest level (Faster R-CNN)."""

    num_levels = 1

    def forward(self, pyramid: list[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the L + 1 levels, finest first."""
        return [*pyramid, F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """Adds two levels by convolutions of stride 2 (RetinaNet, FCOS, ATSS).

    Their input is P5, the coarsest level of the pyramid, if in_channels == out_channels; else C5,
    the coarsest map of the body.
    """

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            _init_conv(conv)
        self.use_p5 = in_channels == out_channels

    def forward(self, pyramid: list[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the L + 2 levels, finest first."""
        p6 = _halved(self.p6, pyramid[-1] if self.use_p5 else features[-1])
        return [*pyramid, p6, _halved(self.p7, F.relu(p6))]


def _halved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of stride 2. On a map of one pixel only the centre of the kernel counts.

    On a CPU, torch's gradient of the whole kernel in bfloat16 has random numbers for such a map
    (torch 2.14).
    """
    if isinstance(x, fx.Proxy) or x.shape[2] > 1 or x.shape[3] > 1:  # a proxy has no shape
        return conv(x)
    return F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias)


class FeaturePyramidNetwork(nn.Module):
    """Top-down pyramid: each level is the lateral map plus the coarser level, upsampled.

    The upsampling is a nearest-neighbour resize.

    Args:
        in_channels: number of channels of each feature map, finest first.
        out_channels: number of channels of every level.
        extra_blocks: LastLevelMaxPool, LastLevelP6P7, or None for no extra levels.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, extra_blocks: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.num_maps = len(in_channels)
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
        return pyramid if self.extra_blocks is None else self.extra_blocks(pyramid, features)


class PathAggregationNetwork(nn.Module):
    """PAFPN: a feature pyramid, then a bottom-up path over its levels.

    On that path each level is the level of the pyramid plus the finer level, which a convolution of
    stride 2 halves; a convolution follows, except at the finest level. Extra levels are made last.
    The definition is mmdetection's PAFPN, whose convolutions have no norm and no activation.

    Args:
        in_channels, out_channels, extra_blocks: see FeaturePyramidNetwork.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, extra_blocks: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.num_maps = len(in_channels)
        self.top_down = FeaturePyramidNetwork(in_channels, out_channels)
        self.down_blocks = nn.ModuleList(
            _init_conv(nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1))
            for _ in in_channels[1:]
        )
        self.out_blocks = nn.ModuleList(
            _init_conv(nn.Conv2d(out_channels, out_channels, 3, padding=1)) for _ in in_channels[1:]
        )
        self.extra_blocks = extra_blocks

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[l], H_l, W_l), finest first -> levels with out_channels channels."""
        finest, *coarser = self.top_down(features)
        sums, pyramid = [finest], [finest]
        for x, down, out in zip(coarser, self.down_blocks, self.out_blocks, strict=True):
            sums.append(x + _cropped(down(sums[-1]), x))
            pyramid.append(out(sums[-1]))
        return pyramid if self.extra_blocks is None else self.extra_blocks(pyramid, features)


class BiFPN(nn.Module):
    """A pyramid of cells, each with a top-down and a bottom-up path and learned weights of sums.

    A 1x1 convolution and a BatchNorm give each map the same width. The extra levels are made of
    these maps, before the cells, so that they take part in all sums.

    Args:
        in_channels, out_channels, extra_blocks: see FeaturePyramidNetwork.
        repeats: number of cells, 3 to 8 in EfficientDet.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        repeats: int = 3,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.num_maps = len(in_channels)
        self.laterals = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False), AnySizeBatchNorm2d(out_channels)
            )
            for channels in in_channels
        )
        self.extra_blocks = extra_blocks
        levels = len(in_channels) + getattr(extra_blocks, "num_levels", 0)
        self.cells = nn.ModuleList(BiFPNCell(out_channels, levels) for _ in range(repeats))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[l], H_l, W_l), finest first -> levels with out_channels channels."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        if self.extra_blocks is not None:
            levels = self.extra_blocks(levels, features)
        for cell in self.cells:
            levels = cell(levels)
        return levels


class BiFPNCell(nn.Module):
    """One cell: each level is fused with the coarser one, top down, then with the finer one.

    The levels between the finest and the coarsest get a third summand on the way up: their input.
    Levels are enlarged by nearest-neighbour resizing and halved by a 3x3 maximum. As in
    EfficientDet, each sum goes through SiLU, a depthwise separable convolution and a BatchNorm.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.top_down = nn.ModuleList(_Fusion(channels, 2) for _ in range(levels - 1))
        inputs = [3] * (levels - 2) + [2]
        self.bottom_up = nn.ModuleList(_Fusion(channels, number) for number in inputs)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """L levels (B, channels, H_l, W_l), finest first -> L levels of the same shapes."""
        inner = [levels[-1]]  # coarsest first
        for x, fuse in zip(reversed(levels[:-1]), self.top_down, strict=True):
            coarser = F.interpolate(inner[-1], size=x.shape[-2:], mode="nearest")
            inner.append(fuse([x, coarser]))
        inner.reverse()
        out = [inner[0]]
        for level, fuse in enumerate(self.bottom_up, start=1):
            finer = F.max_pool2d(out[-1], kernel_size=3, stride=2, padding=1)
            # The coarsest level has no top-down sum: there the input is the only other summand.
            between = [inner[level]] if level < len(levels) - 1 else []
            out.append(fuse([levels[level], *between, _cropped(finer, levels[level])]))
        return out


class _Fusion(nn.Module):
    """Fast normalised fusion: sum of w_i x_i / (sum of w + 0.0001) for learned w >= 0; then a conv.

    Args:
        channels: of each map.
        inputs: number of maps.
    """

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.weights = nn.Parameter(torch.ones(inputs))
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = AnySizeBatchNorm2d(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels, H, W) -> (B, channels, H, W)."""
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        total = weights[0] * maps[0]
        for i in range(1, self.inputs):
            total = total + weights[i] * maps[i]
        return self.norm(self.pointwise(self.depthwise(F.silu(total))))


class Projections(nn.Module):
    """Gives each map the same width by a 1x1 convolution, without a path between the maps (DETR).

    Args:
        in_channels, out_channels, extra_blocks: see FeaturePyramidNetwork.
        norm: builds the norm after each convolution from the number of channels; None: no norm.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.num_maps = len(in_channels)
        self.projections = nn.ModuleList(
            _projection(nn.Conv2d(channels, out_channels, 1), norm) for channels in in_channels
        )
        self.extra_blocks = extra_blocks

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[l], H_l, W_l), finest first -> levels with out_channels channels."""
        levels = [project(x) for project, x in zip(self.projections, features, strict=True)]
        return levels if self.extra_blocks is None else self.extra_blocks(levels, features)


class HalvedLevels(nn.Module):
    """Adds levels by 3x3 convolutions of stride 2: the first one of C5, the others of the last one.

    Args:
        in_channels: of C5, the coarsest map of the body.
        out_channels: of every level.
        num_levels: number of levels that it adds.
        norm: see Projections.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_levels: int = 1,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.projections = nn.ModuleList(
            _projection(nn.Conv2d(channels, out_channels, 3, stride=2, padding=1), norm)
            for channels in [in_channels, *[out_channels] * num_levels][:num_levels]
        )

    def forward(self, pyramid: list[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the L + num_levels levels, finest first."""
        x, levels = features[-1], list(pyramid)
        for project in self.projections:
            x = project(x)
            levels.append(x)
        return levels


def _projection(conv: nn.Conv2d, norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
    """The convolution with Xavier's weights, as in Deformable DETR, and the norm."""
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, *([] if norm is None else [norm(conv.out_channels)]))


Neck = Callable[[Sequence[int], int, nn.Module | None], nn.Module]

# Arguments: in_channels, out_channels, extra_blocks.
NECKS: dict[str, Neck] = {
    "fpn": FeaturePyramidNetwork,
    "pafpn": PathAggregationNetwork,
    "bifpn": BiFPN,
    "hybrid": HybridEncoder,
    "elan": ELANEncoder,
}


def neck_named(neck: str | Neck) -> Neck:
    """The function that builds a neck: the one of this name in NECKS, or `neck` itself.

    Raises:
        ValueError: a name that is not in NECKS.
    """
    if callable(neck):
        return neck
    if neck not in NECKS:
        raise ValueError(f"neck: expected one of {', '.join(NECKS)} or a function, got {neck!r}")
    return NECKS[neck]


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    """The map (B, C, H, W) without rows and columns beyond those of `like`.

    Halving rounds up. Some backbones round down, if the image's size is not a multiple of 32.
    """
    return x[..., : like.shape[-2], : like.shape[-1]]


def _init_conv(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
