# SPDX-License-Identifier: BSD-3-Clause
"""Backbones: a timm model that returns feature maps, with a feature pyramid on top.

Any timm model works that supports `features_only` and has strides of 4, 8, 16 and 32 in its last
four stages. From scratch, all layers are trained, with ordinary BatchNorm. In a pretrained model
the first stages and all BatchNorms are frozen, as in torchvision.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.layers import freeze_batch_norm_2d  # type: ignore[attr-defined]
from torch import Tensor, nn

from fastdet.models.necks import Neck, neck_named

STRIDES = (4, 8, 16, 32)


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
        return self.fpn(self.body(images)[-len(self.strides) :])


def timm_pyramid(
    name: str,
    extra_levels: Callable[[int], nn.Module],
    *,
    maps: int = 4,
    neck: str | Neck = "fpn",
    fpn_channels: int = 256,
    pretrained_backbone: bool = False,
    trainable_backbone_layers: int | None = None,
    frozen_batch_norm: bool | None = None,
) -> BackboneWithFPN:
    """A timm model with a neck, by default a feature pyramid, on top of its last maps.

    Args:
        name: timm's model name, e.g. "resnet18".
        extra_levels: builds the neck's extra_blocks from its number of channels.
        maps: number of maps that the neck takes: the last ones of the model's four.
        neck: "fpn", "pafpn" or "bifpn", or a function (in_channels, out_channels, extra_blocks)
            that builds a neck.
        fpn_channels: number of channels of each level of the pyramid.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        trainable_backbone_layers: see `timm_body`.
        frozen_batch_norm: see `timm_body`.

    Raises:
        ValueError: as `timm_body`; unknown neck.
    """
    build_neck = neck_named(neck)
    body, channels = timm_body(
        name,
        pretrained=pretrained_backbone,
        trainable_layers=trainable_backbone_layers,
        frozen_batch_norm=frozen_batch_norm,
    )
    # Build the extra levels before the pyramid: this order decides the random weights of a seed.
    extra_blocks = extra_levels(fpn_channels)
    return BackboneWithFPN(body, build_neck(channels[-maps:], fpn_channels, extra_blocks))


def timm_body(
    name: str,
    *,
    pretrained: bool = False,
    trainable_layers: int | None = None,
    frozen_batch_norm: bool | None = None,
) -> tuple[nn.Module, list[int]]:
    """The last four stages of a timm model, as a module that returns a list of feature maps.

    Args:
        name: timm's model name, e.g. "resnet18".
        pretrained: use timm's weights, which are downloaded at the first use.
        trainable_layers: in 0 .. 5, how many of the five parts (stem and four stages) are trained,
            counted from the last stage. None: 3 if pretrained, else 5.
        frozen_batch_norm: whether BatchNorm has fixed statistics and weights. None: only if
            pretrained.

    Returns:
        The module and the channels of its four maps.

    Raises:
        ValueError: unknown name; strides other than 4, 8, 16 and 32; trainable_layers out of range.

    Follows torchvision's _resnet_fpn_extractor and _validate_trainable_layers.
    """
    if ":" not in name and not timm.is_model(name):  # a colon: an address, e.g. hf-hub:
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=4)) or "none"
        raise ValueError(
            f"backbone: expected the name of a timm model, got {name!r}; similar: {near}"
        )
    body: Any = timm.create_model(
        name, pretrained=pretrained, features_only=True, out_indices=(-4, -3, -2, -1)
    )
    strides = tuple(body.feature_info.reduction())
    if strides != STRIDES:
        raise ValueError(f"backbone {name!r}: expected strides {STRIDES}, got {strides}")
    if not pretrained:
        _start_batch_norms_at_one(body)
    _freeze_first_layers(
        body, (3 if pretrained else 5) if trainable_layers is None else trainable_layers
    )
    channels = body.feature_info.channels()
    if pretrained if frozen_batch_norm is None else frozen_batch_norm:
        body = freeze_batch_norm_2d(body)
    return body, channels


def _start_batch_norms_at_one(body: nn.Module) -> None:
    """Sets all BatchNorm weights to 1, as in torchvision.

    timm starts the last BatchNorm of each residual branch with zeros.
    """
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)


def _freeze_first_layers(body: Any, trainable_layers: int) -> None:
    """Freezes the stem and the first stages, so that `trainable_layers` of the five are trained."""
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers: expected 0 .. 5, got {trainable_layers}")
    if trainable_layers == 5:
        return
    if not hasattr(body, "return_layers"):
        raise ValueError(f"{type(body).__name__} has no stages to freeze: use trainable_layers=5")
    ends = list(body.return_layers)  # name of the last child module of each stage
    stage = 0  # the stem
    for name, module in body.named_children():
        stage = max(stage, 1 + ends.index(name)) if name in ends else stage
        if stage < 5 - trainable_layers:
            module.requires_grad_(False)
