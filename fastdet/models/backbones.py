# SPDX-License-Identifier: BSD-3-Clause
"""Backbones: a timm network that yields feature maps, with a feature pyramid on top.

Any timm model works that has `features_only` and strides of 4, 8, 16 and 32 in its last four
stages. From scratch everything trains, with ordinary BatchNorm. Of a pretrained one, the first
stages and all BatchNorms are frozen, as in torchvision.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.layers import freeze_batch_norm_2d  # type: ignore[attr-defined]
from torch import Tensor, nn

from fastdet.models.necks import FeaturePyramidNetwork

STRIDES = (4, 8, 16, 32)


def level_scales(backbone: Any) -> dict[int, float]:
    """Feature pixels per image pixel of a backbone's levels, by their indices.

    Args:
        backbone: a module with `strides`, as BackboneWithFPN.
    """
    return {level: 1 / stride for level, stride in enumerate(backbone.strides)}


def feature_maps(output: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> list[Tensor]:
    """What a backbone returns, as a list: one map, maps by name as torchvision's, or a list."""
    if isinstance(output, Tensor):
        return [output]
    return list(output.values() if isinstance(output, Mapping) else output)


class BackboneWithFPN(nn.Module):
    """A body that yields feature maps of strides 4, 8, 16 and 32, then a feature pyramid.

    Args:
        body: (B, 3, H, W) -> four feature maps, finest first.
        fpn: takes the last maps of the body, as many as it has inputs.
    """

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.strides = STRIDES[-len(fpn.inner_blocks) :]
        self.out_channels = fpn.out_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> L maps (B, out_channels, H_l, W_l), finest first."""
        return self.fpn(self.body(images)[-len(self.strides) :])


def timm_pyramid(
    name: str,
    extra_levels: Callable[[int], nn.Module],
    *,
    maps: int = 4,
    fpn_channels: int = 256,
    pretrained_backbone: bool = False,
    trainable_backbone_layers: int | None = None,
    frozen_batch_norm: bool | None = None,
) -> BackboneWithFPN:
    """A timm model with a feature pyramid on top of its last maps.

    Args:
        name: timm's model name, e.g. "resnet18".
        extra_levels: makes the pyramid's extra_blocks from the number of its channels.
        maps: how many maps of the model the pyramid takes, the last ones of four.
        fpn_channels: of each level of the pyramid.
        pretrained_backbone: timm's weights, downloaded at the first use.
        trainable_backbone_layers: see `timm_body`.
        frozen_batch_norm: see `timm_body`.

    Raises:
        ValueError: as `timm_body`.
    """
    body, channels = timm_body(
        name,
        pretrained=pretrained_backbone,
        trainable_layers=trainable_backbone_layers,
        frozen_batch_norm=frozen_batch_norm,
    )
    # The extra levels come before the pyramid: so a seed always gives the same weights.
    extra_blocks = extra_levels(fpn_channels)
    fpn = FeaturePyramidNetwork(channels[-maps:], fpn_channels, extra_blocks)
    return BackboneWithFPN(body, fpn)


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
        pretrained: timm's weights, downloaded at the first use.
        trainable_layers: how many of the stem and the four stages stay trainable, counted from the
            last stage, in 0 .. 5. None is 3 when pretrained and otherwise 5.
        frozen_batch_norm: BatchNorm with fixed statistics and weights. None: only when pretrained.

    Returns:
        The module and the channels of its four maps.

    Raises:
        ValueError: other strides than 4, 8, 16 and 32, or trainable_layers out of range.

    Follows torchvision's _resnet_fpn_extractor and _validate_trainable_layers.
    """
    if ":" not in name and not timm.is_model(name):  # with a colon it is an address
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=4)) or "none"
        raise ValueError(f"backbone: expected the name of a timm model, got {name!r}; near: {near}")
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
    """Undoes timm's zero start of each residual branch's last BatchNorm: torchvision has one."""
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)


def _freeze_first_layers(body: Any, trainable_layers: int) -> None:
    """Freezes the stem and the first stages, so that `trainable_layers` of those five remain."""
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers: expected 0 .. 5, got {trainable_layers}")
    if trainable_layers == 5:
        return
    if not hasattr(body, "return_layers"):
        raise ValueError(f"{type(body).__name__} has no stages to freeze: use trainable_layers=5")
    ends = list(body.return_layers)  # the child module that each stage ends with
    stage = 0  # the stem
    for name, module in body.named_children():
        stage = max(stage, 1 + ends.index(name)) if name in ends else stage
        if stage < 5 - trainable_layers:
            module.requires_grad_(False)
