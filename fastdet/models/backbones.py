# SPDX-License-Identifier: BSD-3-Clause
"""Backbones: a timm model that returns feature maps, with a feature pyramid on top.

From scratch, all layers are trained, with ordinary BatchNorm. In a pretrained model the first
stages and all BatchNorms are frozen, as in torchvision. `timm_bodies.py` says which models work.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.border import Border
from fastdet.models.deprecation import batch_norm_from_frozen
from fastdet.models.necks import Neck, neck_named
from fastdet.models.timm_bodies import STRIDES, timm_body

__all__ = [
    "STRIDES",
    "BackboneWithFPN",
    "feature_maps",
    "fixed_image_size",
    "level_scales",
    "timm_body",
    "timm_pyramid",
]


def level_scales(backbone: Any) -> dict[int, float]:
    """Feature pixels per image pixel of each level of a backbone, by the level's index.

    Args:
        backbone: a module with the attribute `strides`, like BackboneWithFPN.
    """
    return {level: 1 / stride for level, stride in enumerate(backbone.strides)}


def feature_maps(output: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> list[Tensor]:
    """The output of a backbone as a list: one map, a dict of maps (torchvision), or a list."""
    if isinstance(output, Tensor):
        return [output]
    return list(output.values() if isinstance(output, Mapping) else output)


class BackboneWithFPN(nn.Module):
    """A body that returns feature maps of strides 4, 8, 16 and 32, then a neck.

    Args:
        body: (B, 3, H, W) -> four feature maps, finest first.
        fpn: the neck, such as FeaturePyramidNetwork; it takes the last `fpn.num_maps` maps.
    """

    def __init__(self, body: nn.Module, fpn: Any) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.strides = STRIDES[-fpn.num_maps :]
        self.out_channels = fpn.out_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> L maps (B, out_channels, H_l, W_l), finest first."""
        maps = self.body(images)[-len(self.strides) :]
        check_sizes(maps, images, self.strides)
        return self.fpn(maps)


def check_sizes(maps: Sequence[Tensor], images: Tensor, strides: Sequence[int]) -> None:
    """Raises ValueError unless each map covers the images at its stride.

    RoIAlign and anchors would be at wrong places. A side that is no multiple of the stride may be
    rounded up or down. Only shapes are read, so nothing waits for a GPU, and no graph breaks.
    """
    if isinstance(images, fx.Proxy):  # a symbolic trace has no shapes
        return
    height, width = images.shape[2], images.shape[3]
    for x, stride in zip(maps, strides, strict=True):
        down, across = height - stride * x.shape[2], width - stride * x.shape[3]
        if not (-stride < down < stride and -stride < across < stride):
            raise ValueError(
                f"backbone: expected a map of stride {stride} of {height // stride} x "
                f"{width // stride} for images of {height} x {width}, got {x.shape[2]} x "
                f"{x.shape[3]}"
            )


def fixed_image_size(
    fixed_size: tuple[int, int] | None = None, size_divisor: int = 32, **_: Any
) -> tuple[int, int] | None:
    """The height and width of all padded images for these options of a border; None: many."""
    if fixed_size is None:
        return None
    Border(fixed_size=fixed_size, size_divisor=size_divisor)  # refuses numbers below 1
    height, width = (-(-side // size_divisor) * size_divisor for side in fixed_size)
    return height, width


@batch_norm_from_frozen
def timm_pyramid(
    name: str,
    extra_levels: Callable[[int], nn.Module | None],
    *,
    maps: int = 4,
    neck: str | Neck = "fpn",
    fpn_channels: int = 256,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    image_size: tuple[int, int] | None = None,
) -> BackboneWithFPN:
    """A timm model with a neck, by default a feature pyramid, on top of its last maps.

    Args:
        name: timm's model name, e.g. "resnet18".
        extra_levels: builds the neck's extra_blocks, or None, from its number of channels.
        maps: number of maps that the neck takes: the last ones of the model's four.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan", or a function (in_channels,
            out_channels, extra_blocks) that builds a neck.
        fpn_channels: number of channels of each level of the pyramid.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the model; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        image_size: of all padded images, if it is known; see `timm_body`.

    Raises:
        ValueError: as `timm_body`; unknown neck.
    """
    build_neck = neck_named(neck)
    body, channels = timm_body(
        name,
        pretrained=pretrained_backbone,
        weights=backbone_weights,
        trainable_layers=trainable_backbone_layers,
        batch_norm=batch_norm,
        image_size=image_size,
        maps=maps,
    )
    # Build the extra levels before the pyramid: this order decides the random weights of a seed.
    extra_blocks = extra_levels(fpn_channels)
    return BackboneWithFPN(body, build_neck(channels[-maps:], fpn_channels, extra_blocks))
