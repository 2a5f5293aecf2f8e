# SPDX-License-Identifier: BSD-3-Clause
"""Converts RT-DETR and RT-DETRv2 of transformers to ours: same weights, same detections.

Every weight is copied under our name; the backbone, a ResNet-D, becomes timm's. What has no
counterpart here raises an error that names it. `from_transformers` calls this.
"""

from typing import Any

import timm
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from fastdet.models.backbones import BackboneWithFPN
from fastdet.models.batch_norms import with_batch_norms
from fastdet.models.border import Border
from fastdet.models.denoising import DenoisingOptions
from fastdet.models.detector import channels_last
from fastdet.models.hybrid_encoder import HybridEncoder
from fastdet.models.rt_detr import RTDETR, RTDETRHead
from fastdet.models.set_losses import MatchingCosts
from fastdet.models.strided_pointwise import replace_strided_pointwise
from fastdet.models.transformers_names import (
    BLOCKS,
    BOX_HEAD,
    CONV_NORM,
    EXPECTED,
    SHARED,
    Names,
    check_options,
    decoder_layers,
    encoder_layers,
    load_weights,
    refuse,
)

STEM = 64  # channels of timm's stem

# Further options of our networks, by the name in transformers.
LEVELS: dict[str, Any] = {
    "feat_strides": [8, 16, 32],
    "encode_proj_layers": [2],
    "num_feature_levels": 3,
}
EXPECTED_OF_BACKBONE: dict[str, Any] = {
    "model_type": "rt_detr_resnet",
    "num_channels": 3,
    "embedding_size": STEM,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "out_features": ["stage2", "stage3", "stage4"],
}

_MLP = [(r"mlp\.fc(\d)", r"feed_forward.linear\1")]
NAMES: Names = [
    *SHARED,
    *encoder_layers(_MLP),
    ("encoder.downsample_convs.", "backbone.fpn.halve.", CONV_NORM),
    ("encoder.fpn_blocks.", "backbone.fpn.top_down.", [*BLOCKS, *CONV_NORM]),
    ("encoder.pan_blocks.", "backbone.fpn.bottom_up.", [*BLOCKS, *CONV_NORM]),
    ("decoder.bbox_embed.", "head.layers.", [(r"^(\d+)\.", r"\1.box_head."), *BOX_HEAD]),
    *decoder_layers(_MLP, [("encoder_attn_layer_norm", "norm2")]),
    ("backbone.model.embedder.embedder.", "backbone.body.", [
        (r"^0\.convolution", "conv1.0"),
        (r"^0\.normalization", "conv1.1"),
        (r"^1\.convolution", "conv1.3"),
        (r"^1\.normalization", "conv1.4"),
        (r"^2\.convolution", "conv1.6"),
        (r"^2\.normalization", "bn1"),
    ]),
    *(
        (f"backbone.model.encoder.stages.{stage}.layers.", f"backbone.body.layer{stage + 1}.", [
            *((rf"layer\.{i}\.convolution", f"conv{i + 1}") for i in range(3)),
            *((rf"layer\.{i}\.normalization", f"bn{i + 1}") for i in range(3)),
            (r"shortcut(\.1)?\.convolution", "downsample.1"),
            (r"shortcut(\.1)?\.normalization", "downsample.2"),
        ])
        for stage in range(4)
    ),
]  # fmt: skip


def rt_detr_from_transformers(model: Any, border: Border) -> RTDETR:
    """Converts a detector of transformers.

    Args:
        model: RTDetrForObjectDetection or RTDetrV2ForObjectDetection. It is not changed. Its class
            i becomes label i + 1, as 0 is background.
        border: how images are resized and normalised.

    Returns:
        An RTDETR in the mode and dtype and on the device of `model`, with copies of its weights.

    Raises:
        ValueError: an option has no counterpart here; the message names it.
    """
    config, of_backbone = model.config, model.config.backbone_config
    check_options(config, EXPECTED | LEVELS, "config")
    check_options(of_backbone, EXPECTED_OF_BACKBONE, "config.backbone_config")
    converted = RTDETR(
        border,
        BackboneWithFPN(_body(config), _encoder(config)),
        _head(config),
        denoising=DenoisingOptions(
            config.num_denoising, config.label_noise_ratio, config.box_noise_scale
        ),
        detections_per_img=config.num_queries,
        varifocal_alpha=config.focal_loss_alpha,
        varifocal_gamma=config.focal_loss_gamma,
        costs=MatchingCosts(
            config.matcher_class_cost,
            config.matcher_bbox_cost,
            config.matcher_giou_cost,
            config.matcher_alpha,
            config.matcher_gamma,
            "focal" if config.use_focal_loss else "softmax",
        ),
        loss_weights={
            "classification": config.weight_loss_vfl,
            "bbox_regression": config.weight_loss_bbox,
            "bbox_giou": config.weight_loss_giou,
        },
    )
    computed = ("n_points_scale", "anchors", "valid_mask")  # here, too
    state = {k: v for k, v in model.model.state_dict().items() if not k.endswith(computed)}
    load_weights(converted, state, NAMES)
    parameter = next(model.parameters())
    converted.to(device=parameter.device, dtype=parameter.dtype)
    return channels_last(converted.train(model.training))


def _body(config: Any) -> nn.Module:
    """timm's ResNet-D of these numbers of layers and channels, with four maps."""
    backbone = config.backbone_config
    basic = backbone.layer_type == "basic"
    sizes = list(backbone.hidden_sizes)
    if basic and (sizes[0] != STEM or len(set(sizes)) < len(sizes)):
        refuse("config.backbone_config.hidden_sizes", f"{STEM}, then larger ones", sizes)
    body: Any = timm.create_model(
        "resnet18d",
        features_only=True,
        out_indices=(1, 2, 3, 4),
        block=BasicBlock if basic else Bottleneck,
        layers=tuple(backbone.depths),
        channels=tuple(size if basic else size // Bottleneck.expansion for size in sizes),
    )
    if basic:  # transformers has a convolution where timm has none, as nothing changes its shape
        shortcut = nn.Conv2d(STEM, STEM, 1, bias=False), nn.BatchNorm2d(STEM)
        body["layer1"][0].downsample = nn.Sequential(nn.Identity(), *shortcut)
    replace_strided_pointwise(body)
    return with_batch_norms(body, "frozen" if config.freeze_backbone_batch_norms else "train")


def _encoder(config: Any) -> HybridEncoder:
    return HybridEncoder(
        config.backbone_config.hidden_sizes[1:],
        config.encoder_hidden_dim,
        layers=config.encoder_layers,
        heads=config.encoder_attention_heads,
        feedforward=config.encoder_ffn_dim,
        expansion=config.hidden_expansion,
        temperature=config.positional_encoding_temperature,
    )


def _head(config: Any) -> RTDETRHead:
    return RTDETRHead(
        config.d_model,
        config.num_labels + 1,
        3,
        in_channels=config.encoder_hidden_dim,
        num_queries=config.num_queries,
        layers=config.decoder_layers,
        heads=config.decoder_attention_heads,
        points=config.decoder_n_points,
        feedforward_channels=config.decoder_ffn_dim,
        offset_scale=getattr(config, "decoder_offset_scale", 0.5),  # of version 2
        discrete=getattr(config, "decoder_method", "default") == "discrete",
    )
