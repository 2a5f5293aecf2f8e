# SPDX-License-Identifier: BSD-3-Clause
"""Mask R-CNN: a Faster R-CNN whose RoI heads also predict a mask for each box.

Definitions, defaults, loss names and parameter names are torchvision's
(models/detection/mask_rcnn.py). Paper: https://arxiv.org/abs/1703.06870.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastdet.models.backbones import fixed_image_size, level_scales, timm_pyramid
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.deprecation import batch_norm_from_frozen, or_from_options
from fastdet.models.detector import channels_last
from fastdet.models.faster_rcnn import FasterRCNN, faster_rcnn_parts
from fastdet.models.necks import LastLevelMaxPool, Neck
from fastdet.models.roi_heads import MaskBranch, RoIPooling


class MaskRCNNHeads(nn.Sequential):
    """3x3 convolutions on the pooled features; `layers` are their numbers of output channels."""

    def __init__(self, in_channels: int, layers: Sequence[int]) -> None:
        widths = [in_channels, *layers]
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, layers, strict=False)]
        # Nested as in torchvision, so that the parameter names are the same.
        super().__init__(*(nn.Sequential(conv, nn.ReLU(inplace=True)) for conv in convs))
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


class MaskRCNNPredictor(nn.Sequential):
    """Mask logits for each class, at twice the resolution of the input."""

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(in_channels, hidden_channels, 2, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.mask_fcn_logits = nn.Conv2d(hidden_channels, num_classes, 1)
        for conv in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def mask_rcnn_parts(
    backbone: Any,
    num_classes: int,
    *,
    mask_scales: Mapping[int, float] | None = None,
    mask_output_size: tuple[int, int] = (14, 14),
    mask_sampling_ratio: int = 2,
    mask_canonical_scale: int = 224,
    mask_canonical_level: int = 4,
    mask_head: nn.Module | None = None,
    mask_predictor: nn.Module | None = None,
    mask_layers: Sequence[int] | None = None,
    mask_threshold: float | None = 0.5,
    loss_mask_weight: float = 1.0,
    box_parts: Callable[..., dict[str, Any]] = faster_rcnn_parts,
    **options: Any,
) -> dict[str, Any]:
    """Builds MaskRCNN's arguments from options with torchvision's names and defaults.

    Args:
        backbone, num_classes: see `faster_rcnn_parts`.
        mask_scales, mask_output_size, mask_sampling_ratio: like box_scales and so on, for masks.
        mask_canonical_scale, mask_canonical_level: like box_canonical_scale and so on, for masks.
        mask_head, mask_predictor: replace the MaskRCNNHeads and the MaskRCNNPredictor.
        mask_layers: output channels of each layer of the MaskRCNNHeads. None: four layers with the
            backbone's out_channels.
        mask_threshold: see Detector.
        loss_mask_weight: the factor of loss_mask.
        box_parts: builds all other arguments: `faster_rcnn_parts` or `cascade_rcnn_parts`.
        options: the other keyword arguments of box_parts.
    """

    def mask_branch() -> MaskBranch:
        layers = mask_layers or (backbone.out_channels,) * 4
        head, predictor = mask_head, mask_predictor
        if head is None:
            head = MaskRCNNHeads(backbone.out_channels, layers)
        if predictor is None:
            predictor = MaskRCNNPredictor(layers[-1], layers[-1], num_classes)
        return MaskBranch(
            head,
            predictor,
            RoIPooling(
                mask_scales or level_scales(backbone),
                mask_output_size,
                mask_sampling_ratio,
                mask_canonical_scale,
                mask_canonical_level,
            ),
        )

    parts = box_parts(backbone, num_classes, mask_branch=mask_branch, **options)
    parts["loss_weights"]["loss_mask"] = loss_mask_weight
    return parts | {"mask_threshold": mask_threshold}


class MaskRCNN(FasterRCNN):
    """A FasterRCNN whose RoI heads have a MaskBranch.

    `model(images)` also returns masks (K, 1, H, W) in the pixels of each image: bool, True where
    the probability is above mask_threshold; the probabilities if mask_threshold is None. Targets
    need masks (G, H, W).

    Args:
        arguments: the arguments of FasterRCNN.
    """

    @or_from_options(mask_rcnn_parts)
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)


@batch_norm_from_frozen
def mask_rcnn(
    backbone: str = "resnet50",
    num_classes: int = 91,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    neck: str | Neck = "fpn",
    fpn_channels: int = 256,
    **options: Any,
) -> MaskRCNN:
    """A Mask R-CNN with a timm backbone and a feature pyramid.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid, the RPN and the mask head.
        options: keyword arguments of `mask_rcnn_parts` and `faster_rcnn_parts`.
    """
    pyramid = timm_pyramid(
        backbone,
        lambda _: LastLevelMaxPool(),
        neck=neck,
        fpn_channels=fpn_channels,
        pretrained_backbone=pretrained_backbone,
        backbone_weights=backbone_weights,
        trainable_backbone_layers=trainable_backbone_layers,
        batch_norm=batch_norm,
        image_size=fixed_image_size(**options),
    )
    return channels_last(MaskRCNN(**mask_rcnn_parts(pyramid, num_classes, **options)))
