# SPDX-License-Identifier: BSD-3-Clause
"""DETR: a transformer turns a fixed number of queries into detections, without anchors and NMS.

Paper: https://arxiv.org/abs/2005.12872. Definitions and defaults are those of its code and of
transformers' DetrForObjectDetection; where the two differ, of the paper's code. The coarsest map of
the backbone is a sequence of tokens with sine positions. An encoder mixes them; a decoder lets each
query read them. Every layer of the decoder is trained to predict; the last one detects. A query
predicts a class, background included (column 0), and a box in fractions of the image's sides.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdet.models.backbones import feature_maps, fixed_image_size, timm_pyramid
from fastdet.models.batch import Batch
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.border import IMAGE_MEAN, IMAGE_STD, Border
from fastdet.models.checks import check_counts
from fastdet.models.detector import Detector, ParameterGroup, channels_last
from fastdet.models.losses import widened
from fastdet.models.necks import Neck, Projections
from fastdet.models.query_detections import detections_of_softmax
from fastdet.models.running import run
from fastdet.models.set_losses import (
    MatchingCosts,
    matched,
    query_losses,
    set_targets,
    softmax_loss,
    summed_over_layers,
)
from fastdet.models.transformer import (
    MLP,
    Attention,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    pixel_mask,
    real_pixels,
    sine_positions,
    tokens_of,
    xavier,
)
from fastdet.ops.detections import Detections

COSTS = MatchingCosts(cost_class=1.0, cost_bbox=5.0, cost_giou=2.0, kind="softmax")


class Outputs(NamedTuple):
    """The decoder's queries after each of its L layers, normalised: (L, B, Q, D)."""

    queries: Tensor


class SelfAttention(nn.Module):
    """The encoder's: every pixel of the image attends to every other one."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Tokens and positions (B, N, D), mask (B, 1, 1, N) -> (B, N, D)."""
        placed = tokens + positions
        return self.attention(placed, placed, tokens, mask)


class CrossAttention(nn.Module):
    """The decoder's: every query attends to every pixel of the image."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, queries: Tensor, positions: Tensor, placed: Tensor, tokens: Tensor, mask: Tensor
    ) -> Tensor:
        """Queries and positions (B, Q, D), tokens with and without positions (B, N, D)."""
        return self.attention(queries + positions, placed, tokens, mask)


class DETREncoder(nn.Module):
    """Layers of attention between the pixels."""

    def __init__(self, layers: Sequence[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Tokens and positions (B, N, D), mask (B, 1, 1, N) -> (B, N, D)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, mask)
        return tokens


class DETRDecoder(nn.Module):
    """Learned queries that read the pixels.

    Args:
        layers: see DecoderLayer.
        num_queries: Q, maximum number of detections of an image.
        channels: D.
        norm_between: whether a layer takes the normalised queries of the one before, and the last
            ones are normalised twice. So transformers computes a DETR with auxiliary_loss, other
            than the paper's code and than a DETR without.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        num_queries: int,
        channels: int,
        norm_between: bool = False,
    ) -> None:
        super().__init__()
        self.norm_between = norm_between
        self.queries = nn.Parameter(torch.empty(num_queries, channels).normal_())
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Tokens and positions (B, N, D), mask (B, 1, 1, N) -> queries (L, B, Q, D)."""
        own = self.queries.repeat(tokens.shape[0], 1, 1)
        queries, placed = torch.zeros_like(own), tokens + positions
        of_layers = []
        for layer in self.layers:
            queries = layer(queries, own, placed, tokens, mask)
            of_layers.append(self.norm(queries))
            if self.norm_between:
                queries = of_layers[-1]
        if self.norm_between:
            of_layers[-1] = self.norm(queries)
        return torch.stack(of_layers)


class DETRHead(nn.Module):
    """The class logits and the box of a query.

    Args:
        channels: of the queries.
        num_classes: number of classes with background, which is column 0.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_logits = nn.Linear(channels, num_classes)
        self.bbox = MLP(channels, channels, 4, depth=3)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> logits (..., C) and boxes (..., 4), cxcywh in fractions, in float32."""
        return self.cls_logits(queries), widened(self.bbox(queries)).sigmoid()


def detr_parts(
    backbone: Any,
    num_classes: int,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    num_queries: int = 100,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    heads: int = 8,
    feedforward_channels: int = 2048,
    dropout: float = 0.1,
    score_thresh: float = 0.0,
    detections_per_img: int = 100,
    costs: MatchingCosts = COSTS,
    no_object_weight: float = 0.1,
    aux_weight: float = 1.0,
    backbone_lr_factor: float = 0.1,
    classification_weight: float = 1.0,
    bbox_regression_weight: float = 5.0,
    bbox_giou_weight: float = 2.0,
) -> dict[str, Any]:
    """Builds DETR's arguments from options; the defaults are those of the paper's code.

    Args:
        backbone: images -> maps of `backbone.out_channels` channels, which become those of the
            transformer: a multiple of 4 and of heads. The last map is used.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        num_queries: Q, more than the objects of any image.
        encoder_layers, decoder_layers: numbers of layers.
        heads: of every attention.
        feedforward_channels: between the two layers of a feed-forward network.
        dropout: in attention, in feed-forward networks and of what they add.
        score_thresh, detections_per_img, costs, no_object_weight, aux_weight: see DETR.
        backbone_lr_factor: see DETR.
        *_weight: the factor of each loss.
    """
    check_counts(num_queries=num_queries, decoder_layers=decoder_layers)
    channels = backbone.out_channels
    attention = functools.partial(Attention, channels, heads, dropout)
    feed_forward = functools.partial(FeedForward, channels, feedforward_channels, dropout)
    encoder = DETREncoder(
        [
            EncoderLayer(SelfAttention(attention()), feed_forward(), channels, dropout)
            for _ in range(encoder_layers)
        ]
    )
    layers = [
        DecoderLayer(attention(), CrossAttention(attention()), feed_forward(), channels, dropout)
        for _ in range(decoder_layers)
    ]
    for part in (encoder, *layers):
        xavier(part)
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "encoder": encoder,
        "decoder": DETRDecoder(layers, num_queries, channels),
        "head": DETRHead(channels, num_classes),
        "score_thresh": score_thresh,
        "detections_per_img": detections_per_img,
        "costs": costs,
        "no_object_weight": no_object_weight,
        "aux_weight": aux_weight,
        "backbone_lr_factor": backbone_lr_factor,
        "loss_weights": {
            "classification": classification_weight,
            "bbox_regression": bbox_regression_weight,
            "bbox_giou": bbox_giou_weight,
        },
    }


class DETR(Detector):
    """A detector whose queries are matched one to one with the objects.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps: a list, a dict or one tensor. The last one is used.
        encoder: tokens, positions (B, N, D) and a mask -> tokens.
        decoder: tokens, positions and a mask -> queries (L, B, Q, D).
        head: queries -> logits and boxes.
        score_thresh: a detection's score is above this.
        detections_per_img: D, maximum number of detections of an image, at most Q.
        costs: of a query and a box in the matching.
        no_object_weight: of a query without an object in the classification loss.
        aux_weight: of the losses of each layer but the last.
        backbone_lr_factor: the learning rate of the backbone's body, in that of the training. The
            paper's 0.1 is for a pretrained body; a body that starts at random needs 1.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or a number is below 1.
    """

    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        head: DETRHead,
        *,
        score_thresh: float = 0.0,
        detections_per_img: int = 100,
        costs: MatchingCosts = COSTS,
        no_object_weight: float = 0.1,
        aux_weight: float = 1.0,
        backbone_lr_factor: float = 0.1,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(border, head.num_classes, loss_weights=loss_weights)
        check_counts(detections_per_img=detections_per_img)
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.score_thresh = score_thresh
        self.detections_per_img = detections_per_img
        self.costs = costs
        self.no_object_weight = no_object_weight
        self.aux_weight = aux_weight
        self.backbone_lr_factor = backbone_lr_factor

    def class_layers(self) -> dict[str, float]:
        """The layer of the class logits."""
        return {"head.cls_logits": 0.0}

    def parameter_groups(self) -> list[ParameterGroup]:
        """The body of the backbone at a rate of its own, then all else."""
        return backbone_apart(self, self.backbone_lr_factor)

    def outputs(self, batch: Batch) -> Outputs:
        """The queries after each layer of the decoder."""
        feature = feature_maps(run(self.backbone, batch.images))[-1]
        rows, columns = real_pixels(feature, batch.images, batch.sizes)
        mask = pixel_mask(rows, columns)[:, None, None]
        dtype = widened(feature).dtype
        positions = sine_positions(rows, columns, feature.shape[1], dtype)
        tokens = self.encoder(tokens_of([feature]), positions, mask)
        return Outputs(self.decoder(tokens, positions, mask))

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification, bbox_regression and bbox_giou, summed over the layers.

        Each layer is matched by itself. Follows transformers' DetrForObjectDetection with
        auxiliary_loss.
        """
        logits, boxes = self.head(outputs.queries)
        targets = set_targets(batch)
        match = matched(logits, boxes, targets, self.costs)
        classification = functools.partial(softmax_loss, no_object_weight=self.no_object_weight)
        losses = query_losses(logits, boxes, match, targets, classification)
        return summed_over_layers(losses, self.aux_weight)

    @torch.no_grad()
    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """The best queries of the last layer."""
        logits, boxes = self.head(outputs.queries[-1])
        return detections_of_softmax(
            logits,
            boxes,
            batch.sizes,
            score_thresh=self.score_thresh,
            detections_per_img=self.detections_per_img,
        )


def backbone_apart(
    model: Any, lr_factor: float, further: Sequence[nn.Module] = ()
) -> list[ParameterGroup]:
    """What is trained, in two groups.

    Args:
        model: a detector with a backbone.
        lr_factor: of the learning rate of the backbone's body and of the `further` layers; all
            else has 1.
        further: layers.
    """
    body: nn.Module = getattr(model.backbone, "body", model.backbone)
    own = {id(parameter) for part in (body, *further) for parameter in part.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        ParameterGroup([p for p in trained if id(p) in own], lr_factor),
        ParameterGroup([p for p in trained if id(p) not in own]),
    ]


def detr(
    backbone: str = "resnet50",
    num_classes: int = 91,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    neck: str | Neck | None = None,
    fpn_channels: int = 256,
    **options: Any,
) -> DETR:
    """A DETR with a timm backbone.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: None: a 1x1 convolution on the coarsest map, as in the paper. "fpn" adds a 3x3
            convolution. "pafpn", "bifpn", "hybrid" and "elan" take three maps; their coarsest level
            is used.
        fpn_channels: number of channels of the neck and of the transformer.
        options: keyword arguments of `detr_parts`, such as min_size and num_queries.
    """
    pyramid = timm_pyramid(
        backbone,
        lambda _: None,
        maps=1 if neck in (None, "fpn") else 3,
        neck=Projections if neck is None else neck,
        fpn_channels=fpn_channels,
        pretrained_backbone=pretrained_backbone,
        backbone_weights=backbone_weights,
        trainable_backbone_layers=trainable_backbone_layers,
        batch_norm=batch_norm,
        image_size=fixed_image_size(**options),
    )
    return channels_last(DETR(**detr_parts(pyramid, num_classes, **options)))
