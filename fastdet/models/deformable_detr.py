# SPDX-License-Identifier: BSD-3-Clause
"""Deformable DETR: queries look at a few points of several maps; faster to train than DETR.

Paper: https://arxiv.org/abs/2010.04159. Definitions and defaults are those of its code and of
transformers' DeformableDetrForObjectDetection. A pixel of four maps attends to a few points near
its place on each of them (`deformable_attention.py`). A query has a reference point, or a box if
boxes are refined layer by layer. Classes are independent sigmoids, trained by the focal loss; there
is no column for background.

With two stages the encoder's pixels propose boxes, and the best ones are the queries. The proposals
have a score of being any object, of one column; in the paper's code it is the first class's column.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdet.models.backbones import BackboneWithFPN, feature_maps, fixed_image_size, timm_body
from fastdet.models.batch import Batch
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.border import IMAGE_MEAN, IMAGE_STD, Border
from fastdet.models.checks import check_counts
from fastdet.models.deformable_attention import DeformableAttention, Shapes
from fastdet.models.dense_heads import group_norm
from fastdet.models.detector import Detector, ParameterGroup, channels_last
from fastdet.models.detr import backbone_apart
from fastdet.models.losses import PRIOR_LOGIT, widened
from fastdet.models.necks import HalvedLevels, Neck, Projections, neck_named
from fastdet.models.query_detections import detections_of_sigmoid
from fastdet.models.relative_boxes import inverse_sigmoid
from fastdet.models.running import run
from fastdet.models.set_losses import (
    MatchingCosts,
    SetTargets,
    focal_loss,
    matched,
    prefixed,
    query_losses,
    set_targets,
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
    sines,
    tokens_of,
    xavier,
)
from fastdet.ops.detections import Detections
from fastdet.ops.padded_rows import take_rows

SIDE = 0.05  # of a proposal on the finest level, in fractions of the image; twice that on the next
NEAREST, FARTHEST = 0.01, 0.99  # a proposal's centre and sides lie between them
COSTS = MatchingCosts()


class Pixels(NamedTuple):
    """The tokens of all maps, level by level, and where they are.

    Attributes:
        tokens: (B, N, D).
        positions: (B, N, D), the embeddings of place and level.
        mask: (B, N), True for pixels of the image.
        centres: (B, N, 2), x and y in fractions of the image without its padding.
        ratios: (B, L, 2), the image's share of the width and the height of each map.
        shapes: height and width of each map.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    centres: Tensor
    ratios: Tensor
    shapes: Shapes


class Outputs(NamedTuple):
    """What the decoder and the proposals say.

    Attributes:
        queries: (L, B, Q, D), after each layer.
        boxes: (L, B, Q, 4), cxcywh in fractions.
        proposal_logits: (B, N, 1), of being an object; None with one stage.
        proposal_boxes: (B, N, 4), cxcywh in fractions.
    """

    queries: Tensor
    boxes: Tensor
    proposal_logits: Tensor | None = None
    proposal_boxes: Tensor | None = None


class DeformableSelfAttention(nn.Module):
    """The encoder's: a pixel attends to points near its place on every level."""

    def __init__(self, attention: DeformableAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, tokens: Tensor, positions: Tensor, references: Tensor, shapes: Shapes, mask: Tensor
    ) -> Tensor:
        """Tokens and positions (B, N, D), references (B, N, L, 2), mask (B, N) -> (B, N, D)."""
        return self.attention(tokens + positions, references, tokens, shapes, mask)


class DeformableCrossAttention(nn.Module):
    """The decoder's: a query attends to points near its reference on every level."""

    def __init__(self, attention: DeformableAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        mask: Tensor,
    ) -> Tensor:
        """Queries and positions (B, Q, D), references (B, Q, L, 2 or 4), tokens (B, N, D)."""
        return self.attention(queries + positions, references, tokens, shapes, mask)


class DeformableEncoder(nn.Module):
    """Joins the maps and mixes their pixels.

    Args:
        layers: see EncoderLayer.
        levels: number of maps.
        channels: D.
    """

    def __init__(self, layers: Sequence[EncoderLayer], levels: int, channels: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(levels, channels).normal_())
        self.layers = nn.ModuleList(layers)

    def forward(self, maps: Sequence[Tensor], batch: Batch) -> Pixels:
        """Maps (B, D, h, w), finest first -> their pixels, encoded."""
        pixels = self.pixels_of(maps, batch)
        references = pixels.centres[:, :, None] * pixels.ratios[:, None]  # (B, N, L, 2)
        tokens = pixels.tokens
        for layer in self.layers:
            tokens = layer(tokens, pixels.positions, references, pixels.shapes, pixels.mask)
        return pixels._replace(tokens=tokens)

    def pixels_of(self, maps: Sequence[Tensor], batch: Batch) -> Pixels:
        """The pixels of the maps before the encoder."""
        of_levels = []
        for level, x in enumerate(maps):
            rows, columns = real_pixels(x, batch.images, batch.sizes)
            dtype = widened(x).dtype
            positions = sine_positions(rows, columns, x.shape[1], dtype, offset=-0.5)
            centres, ratios = places(rows, columns, dtype)
            mask = pixel_mask(rows, columns)
            of_levels.append((positions + self.level_embed[level], mask, centres, ratios))
        positions, mask, centres, ratios = zip(*of_levels, strict=True)
        return Pixels(
            tokens_of(maps),
            torch.cat(positions, dim=1),
            torch.cat(mask, dim=1),
            torch.cat(centres, dim=1),
            torch.stack(ratios, dim=1),
            [(x.shape[2], x.shape[3]) for x in maps],
        )


def places(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where the pixels of a map are: centres (B, h * w, 2) and ratios (B, 2), see Pixels.

    Args:
        rows, columns: (B, h) and (B, w) bool, see `real_pixels`.
        dtype: of the results.
    """
    axes, ratios = [], []
    for real in (columns, rows):  # x before y
        number = real.sum(dim=1, keepdim=True).to(dtype)  # (B, 1)
        axes.append((torch.arange(real.shape[1], dtype=dtype, device=real.device) + 0.5) / number)
        ratios.append(number / real.shape[1])
    height, width = rows.shape[1], columns.shape[1]
    x = axes[0][:, None].expand(-1, height, -1)
    y = axes[1][:, :, None].expand(-1, -1, width)
    return torch.stack((x, y), dim=-1).flatten(1, 2), torch.cat(ratios, dim=1)


class LearnedQueries(nn.Module):
    """Queries that are the same for every image, and the points at which they first look.

    Args:
        number: Q.
        channels: D.
    """

    def __init__(self, number: int, channels: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(number, channels).normal_())
        self.queries = nn.Parameter(torch.empty(number, channels).normal_())
        self.reference_points = nn.Linear(channels, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and positions (B, Q, D), references (B, Q, 2)."""
        references = widened(self.reference_points(self.positions)).sigmoid()
        queries, positions = (x.repeat(batch, 1, 1) for x in (self.queries, self.positions))
        return queries, positions, references.repeat(batch, 1, 1)


class Proposals(nn.Module):
    """The first stage: every pixel proposes a box; the best proposals are the queries.

    Args:
        number: Q.
        channels: D.
    """

    def __init__(self, number: int, channels: int) -> None:
        super().__init__()
        self.number = number
        self.output = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.objectness = nn.Linear(channels, 1)
        nn.init.constant_(self.objectness.bias, PRIOR_LOGIT)
        self.bbox = box_head(channels, side_logit=0.0)
        self.transform = nn.Linear(2 * channels, 2 * channels)
        self.transform_norm = nn.LayerNorm(2 * channels)
        for layer in (self.output, self.transform):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, pixels: Pixels) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, positions (B, Q, D), references (B, Q, 4); logits (B, N, 1), boxes (B, N, 4)."""
        start, proposes = self._start(pixels)  # (B, N, 4), (B, N, 1)
        hidden = self.norm(self.output(pixels.tokens.where(proposes, 0.0)))
        logits = widened(self.objectness(hidden))
        boxes = (widened(self.bbox(hidden)) + inverse_sigmoid(start)).sigmoid()
        boxes = boxes.where(proposes, 1.0)  # at the lower right corner, as in the paper's code
        best = logits.detach()[..., 0].topk(min(self.number, logits.shape[1]), dim=1).indices
        chosen = take_rows(boxes.detach(), best)  # (B, Q, 4)
        embedded = sines(2 * math.pi * chosen, pixels.tokens.shape[2] // 2).flatten(2)
        embedded = self.transform_norm(self.transform(embedded))
        positions, queries = embedded.chunk(2, dim=2)
        return queries, positions, chosen, logits, boxes

    def _start(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """The box at each pixel, from which it predicts its own, and whether it may propose."""
        sides = [
            pixels.centres.new_full((height * width, 2), SIDE * 2**level)
            for level, (height, width) in enumerate(pixels.shapes)
        ]
        own = torch.cat(sides).expand(pixels.centres.shape)
        start = torch.cat((pixels.centres, own), dim=-1)
        inside = ((start > NEAREST) & (start < FARTHEST)).all(dim=-1)
        return start, (inside & pixels.mask)[..., None]


class DeformableHead(nn.Module):
    """The class logits and the change of the box of a query.

    Args:
        channels: of the queries.
        num_classes: number of classes with background, which has no column.
        side_logit: the logit of a box's sides at the start.
    """

    def __init__(self, channels: int, num_classes: int, side_logit: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_logits = nn.Linear(channels, num_classes - 1)
        nn.init.constant_(self.cls_logits.bias, PRIOR_LOGIT)
        self.bbox = box_head(channels, side_logit)

    def box(self, queries: Tensor, references: Tensor) -> Tensor:
        """Queries (B, Q, D), references (B, Q, 2 or 4) -> boxes (B, Q, 4), in float32."""
        change = widened(self.bbox(queries))
        known = inverse_sigmoid(references)
        if references.shape[-1] == 2:  # the sides are not known
            known = torch.cat((known, torch.zeros_like(known)), dim=-1)
        return (change + known).sigmoid()


def box_head(channels: int, side_logit: float) -> MLP:
    """Three layers that at first change no centre; a box's sides have this logit."""
    mlp = MLP(channels, channels, 4, depth=3)
    last: Any = mlp.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    nn.init.constant_(last.bias[2:], side_logit)
    return mlp


class DeformableDecoder(nn.Module):
    """Layers of queries that look at points of the maps, and the boxes after each of them.

    Args:
        layers: see DecoderLayer.
        box_refine: whether the box of a layer is the reference of the next one.
    """

    def __init__(self, layers: Sequence[DecoderLayer], box_refine: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.box_refine = box_refine

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        pixels: Pixels,
        heads: Sequence[DeformableHead],
    ) -> tuple[Tensor, Tensor]:
        """Queries, positions (B, Q, D), references (B, Q, 2 or 4) -> (L, B, Q, D), (L, B, Q, 4)."""
        of_layers, boxes = [], []
        for level, layer in enumerate(self.layers):
            # In fractions of the map with its padding, on each level.
            ratios = pixels.ratios.repeat(1, 1, references.shape[-1] // 2)[:, None]
            own = references[:, :, None] * ratios
            queries = layer(queries, positions, own, pixels.tokens, pixels.shapes, pixels.mask)
            of_layers.append(queries)
            boxes.append(heads[min(level, len(heads) - 1)].box(queries, references))
            if self.box_refine:
                references = boxes[-1].detach()
        return torch.stack(of_layers), torch.stack(boxes)


def deformable_detr_parts(
    backbone: Any,
    num_classes: int,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    num_queries: int = 300,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    heads: int = 8,
    encoder_points: int = 4,
    decoder_points: int = 4,
    feedforward_channels: int = 1024,
    dropout: float = 0.1,
    box_refine: bool = False,
    two_stage: bool = False,
    score_thresh: float = 0.0,
    detections_per_img: int = 100,
    costs: MatchingCosts = COSTS,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    aux_weight: float = 1.0,
    backbone_lr_factor: float = 0.1,
    classification_weight: float = 2.0,
    bbox_regression_weight: float = 5.0,
    bbox_giou_weight: float = 2.0,
) -> dict[str, Any]:
    """Builds Deformable DETR's arguments from options; the defaults are those of the paper's code.

    Args:
        backbone: images -> maps of `backbone.out_channels` channels, which become those of the
            transformer: a multiple of 4 and of heads. `backbone.levels`, if there is one, else
            the length of `backbone.strides`, is the number of maps.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        num_queries: Q.
        encoder_layers, decoder_layers: numbers of layers.
        heads: of every attention.
        encoder_points, decoder_points: that a head samples on each level.
        feedforward_channels: between the two layers of a feed-forward network.
        dropout: in attention, in feed-forward networks and of what they add.
        box_refine: each layer of the decoder refines the boxes of the one before, with a head of
            its own. Slightly slower, and more exact.
        two_stage: the queries are the best proposals of the encoder's pixels; box_refine is then
            True, too.
        score_thresh, detections_per_img, costs: see DeformableDETR.
        focal_alpha, focal_gamma, aux_weight: see DeformableDETR.
        backbone_lr_factor: see DeformableDETR.
        *_weight: the factor of each loss, and of the same loss of the proposals.

    Raises:
        ValueError: two_stage without box_refine; a number out of range.
    """
    check_counts(num_queries=num_queries, decoder_layers=decoder_layers)
    if two_stage and not box_refine:
        raise ValueError("two_stage: expected box_refine=True, too, got False")
    channels, levels = backbone.out_channels, getattr(backbone, "levels", len(backbone.strides))
    attention = functools.partial(DeformableAttention, channels, heads, levels)
    feed_forward = functools.partial(FeedForward, channels, feedforward_channels, dropout)
    encoder = [
        EncoderLayer(
            DeformableSelfAttention(attention(encoder_points)), started(feed_forward()), channels,
            dropout,
        )
        for _ in range(encoder_layers)
    ]  # fmt: skip
    decoder = [
        DecoderLayer(
            started(Attention(channels, heads, dropout)),
            DeformableCrossAttention(attention(decoder_points)),
            started(feed_forward()),
            channels,
            dropout,
        )
        for _ in range(decoder_layers)
    ]
    weights = {
        "classification": classification_weight,
        "bbox_regression": bbox_regression_weight,
        "bbox_giou": bbox_giou_weight,
    }
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "encoder": DeformableEncoder(encoder, levels, channels),
        "first": (Proposals if two_stage else LearnedQueries)(num_queries, channels),
        "decoder": DeformableDecoder(decoder, box_refine),
        "heads": [
            # A box from a point starts small; one that is refined starts as it is.
            DeformableHead(channels, num_classes, 0.0 if two_stage or level else -2.0)
            for level in range(decoder_layers if box_refine else 1)
        ],
        "score_thresh": score_thresh,
        "detections_per_img": detections_per_img,
        "costs": costs,
        "focal_alpha": focal_alpha,
        "focal_gamma": focal_gamma,
        "aux_weight": aux_weight,
        "backbone_lr_factor": backbone_lr_factor,
        "loss_weights": weights | {f"proposal_{name}": weights[name] for name in weights},
    }


def started(module: nn.Module) -> Any:
    """The module with Xavier's weights."""
    xavier(module)
    return module


class DeformableDETR(Detector):
    """A DETR on several maps.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps (B, D, h, w), finest first: a list, a dict or one
            tensor.
        encoder: maps and batch -> Pixels.
        first: the first queries: LearnedQueries, or Proposals for two stages.
        decoder: queries -> queries and boxes of each layer.
        heads: one for each layer of the decoder, or one for all.
        score_thresh: a detection's score is above this.
        detections_per_img: D, maximum number of detections of an image.
        costs: of a query and a box in the matching.
        focal_alpha, focal_gamma: of the focal loss; see `sigmoid_focal_loss`.
        aux_weight: of the losses of each layer but the last.
        backbone_lr_factor: the learning rate of the backbone's body, of the layers that choose
            points and of the one that chooses the first references, in that of the training.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or a number is below 1.
    """

    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        encoder: DeformableEncoder,
        first: LearnedQueries | Proposals,
        decoder: DeformableDecoder,
        heads: Sequence[DeformableHead],
        *,
        score_thresh: float = 0.0,
        detections_per_img: int = 100,
        costs: MatchingCosts = COSTS,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        aux_weight: float = 1.0,
        backbone_lr_factor: float = 0.1,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(border, heads[0].num_classes, loss_weights=loss_weights)
        check_counts(detections_per_img=detections_per_img)
        self.backbone = backbone
        self.encoder = encoder
        self.first = first
        self.decoder = decoder
        self.heads = nn.ModuleList(heads)
        self.score_thresh = score_thresh
        self.detections_per_img = detections_per_img
        self.costs = costs
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.aux_weight = aux_weight
        self.backbone_lr_factor = backbone_lr_factor

    def class_layers(self) -> dict[str, float]:
        """The layers of the class logits."""
        return {f"heads.{level}.cls_logits": PRIOR_LOGIT for level in range(len(self.heads))}

    def parameter_groups(self) -> list[ParameterGroup]:
        """The body, and what chooses points and references, at a rate of its own; all else."""
        slow = ("sampling_offsets", "reference_points")
        layers = [m for n, m in self.named_modules() if n.rpartition(".")[2] in slow]
        return backbone_apart(self, self.backbone_lr_factor, layers)

    def outputs(self, batch: Batch) -> Outputs:
        """The queries and boxes after each layer of the decoder, and the proposals."""
        pixels = self.encoder(feature_maps(run(self.backbone, batch.images)), batch)
        if isinstance(self.first, Proposals):
            *first, logits, boxes = self.first(pixels)
        else:
            first, logits, boxes = self.first(pixels.tokens.shape[0]), None, None
        queries, of_queries = self.decoder(*first, pixels, self.heads)
        return Outputs(queries, of_queries, logits, boxes)

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification, bbox_regression and bbox_giou, summed over the layers.

        With two stages also those of the proposals, proposal_classification and so on; for them
        all objects are of one class. transformers has no losses of proposals.
        """
        targets = set_targets(batch, first_label=1)
        losses = self._losses(self._logits(outputs.queries), outputs.boxes, targets)
        losses = summed_over_layers(losses, self.aux_weight)
        if outputs.proposal_logits is None or outputs.proposal_boxes is None:
            return losses
        targets = targets._replace(labels=torch.zeros_like(targets.labels))
        of_proposals = self._losses(
            outputs.proposal_logits[None], outputs.proposal_boxes[None], targets
        )
        return losses | prefixed("proposal", summed_over_layers(of_proposals))

    @torch.no_grad()
    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """The best pairs of query and class of the last layer."""
        return detections_of_sigmoid(
            self._logits(outputs.queries[-1:])[0],
            outputs.boxes[-1],
            batch.sizes,
            score_thresh=self.score_thresh,
            detections_per_img=self.detections_per_img,
        )

    def _logits(self, queries: Tensor) -> Tensor:
        """Queries of the last layers (L, B, Q, D) -> (L, B, Q, C - 1)."""
        heads: Any = list(self.heads)[-len(queries) :]
        of_layers = zip(queries.unbind(), heads * (len(queries) // len(heads)), strict=True)
        return torch.stack([head.cls_logits(own) for own, head in of_layers])

    def _losses(self, logits: Tensor, boxes: Tensor, targets: SetTargets) -> dict[str, Tensor]:
        match = matched(logits, boxes, targets, self.costs)
        classification = functools.partial(
            focal_loss, alpha=self.focal_alpha, gamma=self.focal_gamma
        )
        return query_losses(logits, boxes, match, targets, classification)


def deformable_detr(
    backbone: str = "resnet50",
    num_classes: int = 91,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    neck: str | Neck | None = None,
    fpn_channels: int = 256,
    extra_levels: int = 1,
    **options: Any,
) -> DeformableDETR:
    """A Deformable DETR with a timm backbone, on the maps of strides 8, 16 and 32 and coarser ones.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: None: a 1x1 convolution and a GroupNorm on each map, as in the paper; or "fpn",
            "pafpn", "bifpn", "hybrid" or "elan", see `timm_pyramid`.
        fpn_channels: number of channels of the neck and of the transformer.
        extra_levels: number of maps that are coarser than the backbone's, 0 or more.
        options: keyword arguments of `deformable_detr_parts`, such as min_size and box_refine.
    """
    maps = 3
    body, channels = timm_body(
        backbone,
        pretrained=pretrained_backbone,
        weights=backbone_weights,
        trainable_layers=trainable_backbone_layers,
        batch_norm=batch_norm,
        image_size=fixed_image_size(**options),
        maps=maps,
    )
    extra = HalvedLevels(channels[-1], fpn_channels, extra_levels, group_norm)
    if neck is None:
        pyramid: Any = Projections(channels[-maps:], fpn_channels, extra, group_norm)
    else:
        pyramid = neck_named(neck)(channels[-maps:], fpn_channels, extra)
    levels: Any = BackboneWithFPN(body, pyramid)
    levels.levels = maps + extra_levels
    return channels_last(DeformableDETR(**deformable_detr_parts(levels, num_classes, **options)))
