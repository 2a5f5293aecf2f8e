# SPDX-License-Identifier: BSD-3-Clause
"""Converts D-FINE of transformers to ours: same weights, same detections.

Every weight is copied under our name; the backbone, an HGNetV2, becomes timm's. What has no
counterpart here raises an error that names it. `from_transformers` calls this.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import FeatureListNet
from timm.models.hgnet import HighPerfGpuNet
from torch import Tensor, nn

from fastdet.models.backbones import BackboneWithFPN
from fastdet.models.batch_norms import with_batch_norms
from fastdet.models.border import Border
from fastdet.models.d_fine import DFINE, DFINEHead, Sharpness
from fastdet.models.denoising import DenoisingOptions
from fastdet.models.detector import channels_last
from fastdet.models.elan_encoder import ELANEncoder
from fastdet.models.pyramid_reading import points_of_levels
from fastdet.models.set_losses import MatchingCosts
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
)

STRIDES = (8, 16, 32)
# What timm's HGNetV2 is, by the name of the option of transformers.
EXPECTED_OF_BACKBONE: dict[str, Any] = {
    "model_type": "hgnet_v2",
    "num_channels": 3,
    "hidden_act": "relu",
    "stem_strides": [2, 1, 1, 2, 1],
    "stage_downsample": [False, True, True, True],
    "stage_downsample_strides": [2, 2, 2, 2],
}

_MLP = [(r"mlp\.layers\.0", "feed_forward.linear1"), (r"mlp\.layers\.1", "feed_forward.linear2")]
_JOINS = [
    (r"^(\d+)\.csp_rep1\.", r"\1.steps.0.0."),
    (r"^(\d+)\.csp_rep2\.", r"\1.steps.1.0."),
    (r"^(\d+)\.conv2\.", r"\1.steps.0.1."),
    (r"^(\d+)\.conv3\.", r"\1.steps.1.1."),
    (r"^(\d+)\.conv4\.", r"\1.last."),
    *BLOCKS,
    *CONV_NORM,
]
_CONV = [("convolution", "conv"), ("normalization", "bn")]
NAMES: Names = [
    *SHARED,
    *encoder_layers(_MLP),
    (
        "encoder.downsample_convs.",
        "backbone.fpn.halve.",
        [(r"\.conv1\.", ".0."), (r"\.conv2\.", ".1."), *CONV_NORM],
    ),
    ("encoder.fpn_blocks.", "backbone.fpn.top_down.", _JOINS),
    ("encoder.pan_blocks.", "backbone.fpn.bottom_up.", _JOINS),
    ("decoder.pre_bbox_head", "head.first_box", BOX_HEAD),
    ("decoder.bbox_embed.", "head.layers.", [(r"^(\d+)\.", r"\1.distributions."), *BOX_HEAD]),
    ("decoder.lqe_layers.", "head.layers.", [("reg_conf", "sharpness.network")]),
    *decoder_layers(_MLP, [(r"gateway\.gate", "gate.gates"), ("gateway", "gate")]),
    ("backbone.model.embedder.", "backbone.body.stem.", _CONV),
    ("backbone.model.encoder.stages.", "backbone.body.stages_", _CONV),
]


def d_fine_from_transformers(model: Any, border: Border) -> DFINE:
    """Converts a detector of transformers.

    Args:
        model: DFineForObjectDetection. It is not changed. Its class i becomes label i + 1, as 0 is
            background.
        border: how images are resized and normalised.

    Returns:
        A DFINE in the mode and dtype and on the device of `model`, with copies of its weights.

    Raises:
        ValueError: an option has no counterpart here; the message names it.
    """
    config = model.config
    levels = len(config.encoder_in_channels)
    _check(config, levels)
    state = model.model.state_dict()
    points = points_of_levels(config.decoder_n_points, levels)
    head = _head(config, points, float(state["decoder.up"]), float(state["decoder.reg_scale"]))
    converted = DFINE(
        border,
        BackboneWithFPN(_body(config), _encoder(config, levels)),
        head,
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
            "bbox_distribution": config.weight_loss_fgl,
            "distillation": config.weight_loss_ddf,
        },
    )
    load_weights(converted, _our_form(state, config.decoder_attention_heads, points), NAMES)
    parameter = next(model.parameters())
    converted.to(device=parameter.device, dtype=parameter.dtype)
    return channels_last(converted.train(model.training))


def _check(config: Any, levels: int) -> None:
    """Raises ValueError for the first option that has no counterpart here."""
    last = config.decoder_layers - 1
    of_levels = {
        "feat_strides": list(STRIDES[-levels:]),
        "encode_proj_layers": [levels - 1],
        "num_feature_levels": levels,
        "decoder_in_channels": [config.encoder_hidden_dim] * levels,
        "eval_idx": last if config.eval_idx >= 0 else -1,
    }
    check_options(config, EXPECTED | of_levels, "config")
    stages = [f"stage{stage}" for stage in range(1, 5)]
    of_backbone = EXPECTED_OF_BACKBONE | {
        "stage_names": ["stem", *stages],
        "out_features": stages[-levels:],
    }
    check_options(config.backbone_config, of_backbone, "config.backbone_config")


def _body(config: Any) -> nn.Module:
    """timm's HGNetV2 of these numbers of layers and channels, with four maps."""
    backbone = config.backbone_config
    numbers = zip(
        backbone.stage_in_channels,
        backbone.stage_mid_channels,
        backbone.stage_out_channels,
        backbone.stage_num_blocks,
        backbone.stage_downsample,
        backbone.stage_light_block,
        backbone.stage_kernel_size,
        backbone.stage_numb_of_layers,
        strict=True,
    )
    stages = {f"stage{number}": stage for number, stage in enumerate(numbers, start=1)}
    channels, *stem = backbone.stem_channels
    network: Any = HighPerfGpuNet(
        {"stem_type": "v2", "stem_chs": stem, **stages},
        in_chans=channels,
        use_lab=backbone.use_learnable_affine_block,
    )
    body = FeatureListNet(network, out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return with_batch_norms(body, "frozen" if config.freeze_backbone_batch_norms else "train")


def _encoder(config: Any, levels: int) -> ELANEncoder:
    return ELANEncoder(
        config.backbone_config.stage_out_channels[-levels:],
        config.encoder_hidden_dim,
        layers=config.encoder_layers,
        heads=config.encoder_attention_heads,
        feedforward=config.encoder_ffn_dim,
        expansion=config.hidden_expansion,
        blocks=round(3 * config.depth_mult),
        temperature=config.positional_encoding_temperature,
    )


def _head(config: Any, points: Sequence[int], reach: float, steepness: float) -> DFINEHead:
    return DFINEHead(
        config.d_model,
        config.num_labels + 1,
        len(points),
        in_channels=config.encoder_hidden_dim,
        num_queries=config.num_queries,
        layers=config.decoder_layers,
        heads=config.decoder_attention_heads,
        points=points,
        feedforward_channels=config.decoder_ffn_dim,
        offset_scale=config.decoder_offset_scale,
        discrete=config.decoder_method == "discrete",
        bins=config.max_num_bins,
        reach=reach,
        steepness=steepness,
        sharpness=functools.partial(
            Sharpness, config.top_prob_values, config.lqe_hidden_dim, config.lqe_layers
        ),
    )


def _our_form(state: Mapping[str, Tensor], heads: int, points: Sequence[int]) -> dict[str, Tensor]:
    """The weights in the shapes of ours, under transformers' names."""
    computed = ("num_points_scale", "anchors", "valid_mask", "decoder.up", "decoder.reg_scale")
    given: dict[str, Tensor] = {}
    for name, value in state.items():
        split = re.fullmatch(r"(encoder\.(?:fpn|pan)_blocks\.\d+\.)conv1(\..*)", name)
        if name.endswith(computed):
            continue
        if split and value.dim():  # one convolution that we have as two
            for part, half in zip(("first", "second"), value.chunk(2), strict=True):
                given[f"{split[1]}{part}{split[2]}"] = half
        elif "sampling_offsets" in name or "attention_weights" in name:
            given[name] = _padded(value, heads, points)
        elif not name.endswith("num_batches_tracked"):
            given[name] = value
    return given


def _padded(rows: Tensor, heads: int, points: Sequence[int]) -> Tensor:
    """Rows of weights for the points of each head, level by level, with as many for each level."""
    parts = rows.unflatten(0, (heads, sum(points), -1)).split(list(points), dim=1)
    after = (0, 0) * (parts[0].dim() - 2)
    padded = [F.pad(part, (*after, 0, max(points) - part.shape[1])) for part in parts]
    return torch.stack(padded, dim=1).flatten(0, 3)
