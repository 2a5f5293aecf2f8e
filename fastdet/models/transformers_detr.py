# SPDX-License-Identifier: BSD-3-Clause
"""Converts DETR and Deformable DETR of transformers to ours; `from_transformers` calls this.

The backbone, one of timm or transformers' own ResNet, becomes timm's, and its maps are compared
with those of the given one.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import timm
import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fastdet.models.backbones import BackboneWithFPN, timm_body
from fastdet.models.batch_norms import with_batch_norms
from fastdet.models.border import Border
from fastdet.models.deformable_detr import DeformableDETR, deformable_detr_parts
from fastdet.models.detector import channels_last
from fastdet.models.detr import DETR, detr_parts
from fastdet.models.necks import HalvedLevels, Projections
from fastdet.models.set_losses import MatchingCosts
from fastdet.models.strided_pointwise import replace_strided_pointwise
from fastdet.models.transformer import ACTIVATIONS, Attention, FeedForward

STEM = 64  # channels of timm's stem
PROBE = (75, 106)  # height and width of the image on which backbones are compared
GROUPS = 32  # of a GroupNorm of Deformable DETR
EPS = 1e-5  # of a norm of a backbone, whatever the given network had before transformers froze it

# Parts of transformers' names of weights, and of ours.
LAYERS = [
    (r"^encoder\.(.*)\.self_attn\.", r"encoder.\1.attention.attention."),
    (r"^encoder\.(.*)\.self_attn_layer_norm\.", r"encoder.\1.norm1."),
    (r"^encoder\.(.*)\.final_layer_norm\.", r"encoder.\1.norm2."),
    (r"^decoder\.(.*)\.self_attn\.", r"decoder.\1.self_attention."),
    (r"^decoder\.(.*)\.self_attn_layer_norm\.", r"decoder.\1.norm1."),
    (r"^decoder\.(.*)\.encoder_attn\.", r"decoder.\1.cross_attention.attention."),
    (r"^decoder\.(.*)\.encoder_attn_layer_norm\.", r"decoder.\1.norm2."),
    (r"^decoder\.(.*)\.final_layer_norm\.", r"decoder.\1.norm3."),
    (r"\.mlp\.fc([12])\.", r".feed_forward.linear\1."),
    (r"\.o_proj\.", ".out_proj."),
]
OF_DETR = [
    (r"^input_projection\.", "backbone.fpn.projections.0.0."),
    (r"^query_position_embeddings\.weight$", "decoder.queries"),
    (r"^decoder\.layernorm\.", "decoder.norm."),
    (r"^class_labels_classifier\.", "head.cls_logits."),
    (r"^bbox_predictor\.", "head.bbox."),
    *LAYERS,
]
OF_DEFORMABLE_DETR = [
    (r"^level_embed$", "encoder.level_embed"),
    (r"^reference_points\.", "first.reference_points."),
    (r"^enc_output\.", "first.output."),
    (r"^enc_output_norm\.", "first.norm."),
    (r"^pos_trans\.", "first.transform."),
    (r"^pos_trans_norm\.", "first.transform_norm."),
    (r"^class_embed\.(\d+)\.", r"heads.\1.cls_logits."),
    (r"^bbox_embed\.(\d+)\.", r"heads.\1.bbox."),
    *LAYERS,
]
# Of a ResNet of transformers, in timm.
OF_RESNET = [
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
]


def detr_from_transformers(model: Any, border: Border) -> DETR:
    """Converts a DetrForObjectDetection.

    Args:
        model: it is not changed. Its class i becomes label i + 1, as 0 is background.
        border: how images are resized and normalised.

    Returns:
        A DETR in the mode and dtype and on the device of `model`, with copies of its weights.

    Raises:
        ValueError: an option has no counterpart here; the message names it.
    """
    config = model.config
    _check(config)
    body, channels = _body(model.model.backbone, config.backbone_config)
    backbone = BackboneWithFPN(body, Projections(channels[-1:], config.d_model))
    parts = detr_parts(
        backbone,
        config.num_labels + 1,
        num_queries=config.num_queries,
        detections_per_img=config.num_queries,
        costs=_costs(config, "softmax"),
        no_object_weight=config.eos_coefficient,
        **_options(config),
    )
    parts["border"] = border
    parts["decoder"].norm_between = config.auxiliary_loss
    detector = DETR(**parts)
    given = _renamed(_state(model), OF_DETR)
    for name in ("weight", "bias"):  # transformers has background last
        given[f"head.cls_logits.{name}"] = given[f"head.cls_logits.{name}"].roll(1, dims=0)
    return _finished(detector, given, model)


def deformable_detr_from_transformers(model: Any, border: Border) -> DeformableDETR:
    """Converts a DeformableDetrForObjectDetection; see `detr_from_transformers`."""
    config = model.config
    _check(config)
    layers, levels = config.decoder_layers, config.num_feature_levels
    body, channels = _body(model.model.backbone, config.backbone_config)

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(GROUPS, channels)

    extra = HalvedLevels(channels[-1], config.d_model, levels - len(channels), norm)
    backbone: Any = BackboneWithFPN(body, Projections(channels, config.d_model, extra, norm))
    backbone.levels = levels
    state = _state(model)
    one_head = not config.with_box_refine and _same_heads(state)
    parts = deformable_detr_parts(
        backbone,
        config.num_labels + 1,
        num_queries=config.two_stage_num_proposals if config.two_stage else config.num_queries,
        encoder_points=config.encoder_n_points,
        decoder_points=config.decoder_n_points,
        box_refine=config.with_box_refine,
        two_stage=config.two_stage,
        costs=_costs(config, "focal"),
        focal_alpha=config.focal_alpha,
        **_options(config),
    )
    if one_head:
        state = {k: v for k, v in state.items() if not re.match(r"(class|bbox)_embed\.[1-9]", k)}
    elif not config.with_box_refine:  # heads that were trained apart
        parts["heads"] = [copy.deepcopy(parts["heads"][0]) for _ in range(layers)]
    _split_first(state, config.two_stage, layers)
    inputs = r"^input_proj\.(\d+)\."
    maps = len(channels)

    def projection(match: re.Match[str]) -> str:
        level = int(match[1])
        own = f"projections.{level}" if level < maps else f"extra_blocks.projections.{level - maps}"
        return f"backbone.fpn.{own}."

    given = _renamed(state, [(inputs, projection), *OF_DEFORMABLE_DETR])
    parts["border"] = border
    return _finished(DeformableDETR(**parts), given, model)


# ---- backbones -----------------------------------------------------------------------------------


def _body(backbone: Any, config: Any) -> tuple[nn.Module, list[int]]:
    """timm's body with the weights of a backbone, and the channels of the maps that are used."""
    if config.model_type == "timm_backbone":
        body, channels = timm_body(config.backbone, batch_norm="frozen")
        renames: list[Any] = []
    elif config.model_type == "resnet":
        body, channels = _resnet(config), list(config.hidden_sizes)
        renames = OF_RESNET
    else:
        _refuse("config.backbone_config.model_type", "timm_backbone or resnet", config.model_type)
    frozen = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
    norms: list[Any] = [module for module in body.modules() if isinstance(module, frozen)]
    for norm in norms:
        norm.eps = EPS
    theirs: Any = backbone.model
    _load(body, _renamed(theirs.state_dict(), renames), "config.backbone_config: ")
    trained = _renamed({n: p.requires_grad for n, p in theirs.named_parameters()}, renames)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    channels = channels[-len(backbone.intermediate_channel_sizes) :]
    _check_maps(theirs, body, channels)
    return body, channels


def _resnet(config: Any) -> nn.Module:
    """timm's ResNet of these numbers of layers and channels, with four maps."""
    basic = config.layer_type == "basic"
    sizes = list(config.hidden_sizes)
    expected = {
        "num_channels": 3,
        "embedding_size": STEM,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    for name, value in expected.items():
        if getattr(config, name) != value:
            _refuse(f"config.backbone_config.{name}", value, getattr(config, name))
    body: Any = timm.create_model(
        "resnet18",
        features_only=True,
        out_indices=(1, 2, 3, 4),
        block=BasicBlock if basic else Bottleneck,
        layers=tuple(config.depths),
        channels=tuple(size if basic else size // Bottleneck.expansion for size in sizes),
    )
    replace_strided_pointwise(body)
    return with_batch_norms(body, "frozen")


@torch.no_grad()
def _check_maps(theirs: Any, body: nn.Module, channels: Sequence[int]) -> None:
    """Raises ValueError unless the last maps of the body are those of the given network."""
    parameter = next(theirs.parameters())
    network = copy.deepcopy(theirs).float().cpu().eval()
    images = torch.rand(1, 3, *PROBE, generator=torch.Generator().manual_seed(0))
    expected: Any = network(images)
    expected = list(expected.feature_maps if hasattr(expected, "feature_maps") else expected)
    found = body.eval()(images)[-len(channels) :]
    body.train()
    for x, own in zip(expected, found, strict=True):
        if x.shape != own.shape or not (x - own).norm() <= 1e-3 * x.norm():
            _refuse(
                "config.backbone_config",
                "a network whose last maps are those of timm's",
                f"other ones of shape {tuple(x.shape)}",
            )
    body.to(device=parameter.device, dtype=parameter.dtype)


# ---- options and weights -------------------------------------------------------------------------


def _check(config: Any) -> None:
    expected = {"position_embedding_type": "sine", "num_channels": 3, "dilation": False}
    for name, value in expected.items():
        if getattr(config, name) != value:
            _refuse(f"config.{name}", repr(value), repr(getattr(config, name)))
    if config.activation_function not in ACTIVATIONS:
        known = " or ".join(ACTIVATIONS)
        _refuse("config.activation_function", known, config.activation_function)
    for name in ("attention_heads", "ffn_dim"):
        own, other = (getattr(config, f"{part}_{name}") for part in ("encoder", "decoder"))
        if own != other:
            _refuse(f"config.decoder_{name}", f"that of the encoder, {own}", other)


def _options(config: Any) -> dict[str, Any]:
    """What the options of the parts of both families have in common."""
    return {
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "heads": config.encoder_attention_heads,
        "feedforward_channels": config.encoder_ffn_dim,
        "dropout": config.dropout,
        "aux_weight": 1.0 if config.auxiliary_loss else 0.0,
        "classification_weight": 1.0,
        "bbox_regression_weight": config.bbox_loss_coefficient,
        "bbox_giou_weight": config.giou_loss_coefficient,
    }


def _costs(config: Any, kind: str) -> MatchingCosts:
    return MatchingCosts(config.class_cost, config.bbox_cost, config.giou_cost, kind=kind)


def _state(model: Any) -> dict[str, Tensor]:
    """The weights besides those of the backbone, once each."""
    state = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
    again = ("backbone.", "decoder.class_embed.", "decoder.bbox_embed.")  # of the heads, in a model
    return {k: v for k, v in state.items() if not k.startswith(again)}


def _same_heads(state: dict[str, Tensor]) -> bool:
    """Whether the heads of all layers of the decoder have the same weights."""
    names = [k for k in state if re.match(r"(class|bbox)_embed\.", k)]
    return all(torch.equal(state[re.sub(r"\.\d+\.", ".0.", k, count=1)], state[k]) for k in names)


def _split_first(state: dict[str, Tensor], two_stage: bool, layers: int) -> None:
    """Gives the weights of what makes the first queries our names, in place."""
    if not two_stage:
        embedded = state.pop("query_position_embeddings.weight").chunk(2, dim=1)
        state["first.positions"], state["first.queries"] = embedded
        return
    # The head after the last layer's is that of the proposals; its first column is any object.
    for name in [k for k in state if re.match(rf"(class|bbox)_embed\.{layers}\.", k)]:
        value = state.pop(name)
        rest = re.sub(r"^\w+\.\d+\.", "", name)
        if name.startswith("class"):
            state[f"first.objectness.{rest}"] = value[:1]
        else:
            state[f"first.bbox.{rest}"] = value


def _renamed(state: dict[str, Any], renames: Sequence[Any]) -> dict[str, Any]:
    """The values under our names."""
    renamed = {}
    for name, value in state.items():
        for pattern, by in renames:
            name = re.sub(pattern, by, name)
        renamed[name] = value
    return renamed


def _finished(detector: Any, given: dict[str, Tensor], model: Any) -> Any:
    """The detector with the weights, the dropout, the mode, dtype and device of the model."""
    body = {f"backbone.body.{k}": v for k, v in detector.backbone.body.state_dict().items()}
    _load(detector, given | body, "")
    config = model.config
    modules: list[nn.Module] = list(detector.modules())
    for module in modules:
        if isinstance(module, Attention):
            module.dropout = float(config.attention_dropout)
        if isinstance(module, FeedForward):
            module.dropout = nn.Dropout(config.activation_dropout)
            module.activation = ACTIVATIONS[config.activation_function]()
    parameter = next(model.parameters())
    detector.to(device=parameter.device, dtype=parameter.dtype)
    return channels_last(detector.train(model.training))


def _load(module: nn.Module, given: dict[str, Tensor], where: str) -> None:
    """Copies weights.

    Raises:
        ValueError: one has no counterpart, or one of another shape.
    """
    wanted = module.state_dict()
    given = {k: v for k, v in given.items() if not k.endswith("num_batches_tracked")}
    for name in sorted(wanted.keys() ^ given.keys()):
        got = "it here alone" if name in wanted else "it in the given model alone"
        _refuse(f"{where}{name}", "this weight in both models", got)
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            _refuse(f"{where}{name}", f"shape {tuple(wanted[name].shape)}", tuple(value.shape))
    module.load_state_dict(given)


def _refuse(name: str, expected: Any, got: Any) -> NoReturn:
    raise ValueError(f"{name}: expected {expected}, got {got}")
