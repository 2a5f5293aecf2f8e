# SPDX-License-Identifier: BSD-3-Clause
"""D-FINE: RT-DETR whose boxes are distributions, which the layers of the decoder refine.

Paper: https://arxiv.org/abs/2410.13842. The first layer of the decoder predicts a box. From then on
each layer refines, for each side of this box, a distribution of how far it moves
(`distribution_boxes.py`). How sharp the distributions are changes the class score, too. In training
the last layer teaches the others, and boxes are learned by the queries that most layers match.
Queries, denoising and the other losses are RT-DETR's. Definitions and defaults are those of the
authors' code.

All shapes are fixed: in training there are `2 * denoising` more queries, whatever the images have.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdet.models.backbones import BackboneWithFPN, fixed_image_size, timm_body
from fastdet.models.batch import Batch
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.border import IMAGE_MEAN, IMAGE_STD, Border
from fastdet.models.checks import check_counts
from fastdet.models.denoising import Denoising, DenoisingOptions, of_used_queries
from fastdet.models.detector import channels_last
from fastdet.models.distribution_boxes import bin_moves, moved_boxes
from fastdet.models.distribution_losses import distillation_losses, localization_losses
from fastdet.models.elan_encoder import ELANEncoder
from fastdet.models.hybrid_encoder import ConvNorm
from fastdet.models.losses import widened
from fastdet.models.necks import Neck, neck_named
from fastdet.models.pyramid_reading import PyramidReading, points_of_levels
from fastdet.models.query_selection import (
    BoxHead,
    LevelProjections,
    Queries,
    QuerySelection,
    class_layer,
    split_known,
    with_selection,
)
from fastdet.models.relative_boxes import inverse_sigmoid
from fastdet.models.rt_detr import COSTS, MAPS, RTDETR
from fastdet.models.running import run
from fastdet.models.set_losses import (
    MatchingCosts,
    SetTargets,
    box_losses,
    counted,
    matched,
    most_common,
    paired,
    set_targets,
    summed_over_layers,
)
from fastdet.models.transformer import MLP, Attention, DecoderLayer, FeedForward, tokens_of

POINTS = (3, 6, 3)  # that a query reads at each of three levels
MOST_POSITION = 10.0  # of the absolute values of a query's position


class Predictions(NamedTuple):
    """What the layers of the decoder say of some queries.

    Attributes:
        logits: (K, B, Q, C - 1), of the IoU with an object of the class; the first is class 1.
        boxes: (K, B, Q, 4) cxcywh in fractions of the image. K is L layers after one for the first
            box, and before that, where it belongs to these queries, one for the selection.
        distributions: (L, B, Q, 4, bins + 1) logits of the moves of the sides.
        first_boxes: (1, B, Q, 4), from which the sides move; without gradients.
    """

    logits: Tensor
    boxes: Tensor
    distributions: Tensor
    first_boxes: Tensor


class Gate(nn.Module):
    """The sum of two inputs, each weighted by a gate that sees both, and a norm.

    Args:
        channels: of each input. At the start all gates are 0.5.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * channels, 2 * channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(..., channels) each -> (..., channels)."""
        of_first, of_second = self.gates(torch.cat([first, second], dim=-1)).sigmoid().chunk(2, -1)
        return self.norm(of_first * first + of_second * second)


class GatedLayer(DecoderLayer):
    """A layer that joins queries and what they read by a gate; arguments as of DecoderLayer."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.gate = Gate(self.norm1.normalized_shape[0])
        del self.norm2  # the gate has its own

    def with_read(self, queries: Tensor, added: Tensor) -> Tensor:
        """Queries and what they read from the pixels, (B, Q, D) each -> (B, Q, D)."""
        return self.gate(queries, added)


class Sharpness(nn.Module):
    """What the distributions of a box add to its class logits (LQE).

    Args:
        highest: how many of the probabilities of a side are read; their mean is, too.
        channels, layers: of the perceptron, whose output is 0 at the start.
    """

    def __init__(self, highest: int = 4, channels: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.highest = highest
        self.network = MLP(4 * (highest + 1), channels, 1, depth=layers)
        last: Any = self.network.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, distributions: Tensor) -> Tensor:
        """Logits (B, Q, 4, bins + 1) -> (B, Q, 1)."""
        highest = distributions.softmax(dim=-1).topk(self.highest, dim=-1).values
        return self.network(torch.cat([highest, highest.mean(-1, keepdim=True)], dim=-1).flatten(2))


class Refinement(nn.Module):
    """A layer of the decoder, and what it predicts.

    Args:
        layer: queries attend to each other and read the pyramid.
        channels: of the queries.
        num_classes: with background.
        bins: see `bin_moves`.
        sharpness: see there.
    """

    def __init__(
        self, layer: GatedLayer, channels: int, num_classes: int, bins: int, sharpness: Sharpness
    ) -> None:
        super().__init__()
        self.layer = layer
        self.cls_logits = class_layer(channels, num_classes)
        self.distributions = BoxHead(channels, 4 * (bins + 1))
        self.sharpness = sharpness


class DFINEHead(nn.Module):
    """Selects queries and refines them.

    Args:
        channels: of the queries.
        num_classes: number of classes with background, which is class 0.
        levels: number of levels.
        in_channels: of the levels; None: channels. If they differ, a 1x1 convolution and a norm
            come first.
        num_queries: see QuerySelection.
        layers: of the decoder.
        heads: of attention; fewer if they do not divide channels.
        points: that a query reads at each level and head: one number, or one for each level. None:
            3, 6 and 3 for three levels, else 6.
        feedforward_channels: hidden width of the layers; None: 4 * channels.
        offset_scale, discrete: see PyramidReading.
        bins, reach, steepness: see `bin_moves`.
        sharpness: builds what the distributions add to the class logits of a layer.

    Raises:
        ValueError: a number below 1; another number of points than of levels; see `bin_moves`.
    """

    moves: Tensor

    def __init__(
        self,
        channels: int,
        num_classes: int,
        levels: int,
        *,
        in_channels: int | None = None,
        num_queries: int = 300,
        layers: int = 6,
        heads: int = 8,
        points: int | Sequence[int] | None = None,
        feedforward_channels: int | None = None,
        offset_scale: float = 0.5,
        discrete: bool = False,
        bins: int = 32,
        reach: float = 0.5,
        steepness: float = 4.0,
        sharpness: Any = Sharpness,
    ) -> None:
        super().__init__()
        if points is None:
            points = POINTS if levels == len(POINTS) else max(POINTS)
        points = points_of_levels(points, levels)
        check_counts(num_queries=num_queries, decoder_layers=layers, points=min(points))
        self.num_classes = num_classes
        self.register_buffer("moves", bin_moves(bins, reach, steepness), persistent=False)
        self.inputs = None
        if in_channels not in (None, channels):
            self.inputs = LevelProjections(
                ConvNorm(in_channels, channels, 1) for _ in range(levels)
            )
        self.selection = QuerySelection(channels, num_classes, num_queries)
        self.query_positions = MLP(4, 2 * channels, channels, depth=2)
        self.first_box = BoxHead(channels)
        width = 4 * channels if feedforward_channels is None else feedforward_channels
        heads = math.gcd(channels, heads)
        self.layers = nn.ModuleList(
            Refinement(
                GatedLayer(
                    Attention(channels, heads),
                    PyramidReading(
                        channels,
                        heads,
                        points,
                        offset_scale=offset_scale,
                        discrete=discrete,
                        projects=False,
                    ),
                    FeedForward(channels, width),
                    channels,
                ),
                channels,
                num_classes,
                bins,
                sharpness(),
            )
            for _ in range(layers)
        )

    def forward(
        self, features: Sequence[Tensor], extents: Tensor, denoising: Denoising | None
    ) -> tuple[Predictions, Predictions | None]:
        """Predictions of the queries and of the denoising queries.

        Args:
            features: L maps (B, in_channels, H_l, W_l).
            extents: see `image_extents`.
            denoising: further queries.
        """
        maps = features if self.inputs is None else run(self.inputs, features)
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        pyramid = tokens_of(maps)  # (B, S, C)
        del maps  # the tokens are a copy
        queries, logits, selected = self.selection.start(pyramid, shapes, extents, denoising)
        refined = self._refined(queries, extents, pyramid, shapes)
        denoised, found = split_known(refined, queries.known)
        found = with_selection(found, logits, selected)
        return found, None if denoising is None else denoised

    def _refined(
        self,
        queries: Queries,
        extents: Tensor,
        pyramid: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Predictions:
        """The predictions of each layer, after those of the first box."""
        tokens, references = queries.tokens, queries.boxes
        extents = extents.repeat(1, 2)[:, None]  # (B, 1, 4)
        logits, boxes, distributions = [], [], []
        before, summed = 0.0, 0.0  # what the layer before has
        refinement: Any
        for refinement in self.layers:
            positions = self.query_positions(references.to(pyramid.dtype))
            positions = positions.clamp(-MOST_POSITION, MOST_POSITION)
            further = references * extents, pyramid, shapes
            tokens = refinement.layer(tokens, positions, *further, mask=queries.mask)
            scores = refinement.cls_logits(tokens)
            if not boxes:
                deltas = widened(self.first_box(tokens))
                boxes.append((deltas + inverse_sigmoid(references)).sigmoid())
                logits.append(scores)
            summed = refinement.distributions(tokens + before) + summed
            before = tokens.detach()
            distributions.append(summed.unflatten(2, (4, -1)))
            boxes.append(moved_boxes(boxes[0].detach(), distributions[-1], self.moves))
            logits.append(scores + refinement.sharpness(distributions[-1]))
            references = boxes[-1].detach()
        return Predictions(
            torch.stack(logits),
            torch.stack(boxes),
            torch.stack(distributions),
            first_boxes=boxes[0].detach()[None],
        )


def d_fine_parts(
    backbone: Any,
    num_classes: int,
    *,
    min_size: int | Sequence[int] = 640,
    max_size: int = 640,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    head: DFINEHead | None = None,
    num_queries: int = 300,
    decoder_layers: int = 6,
    heads: int = 8,
    points: int | Sequence[int] | None = None,
    feedforward_channels: int | None = None,
    discrete: bool = False,
    bins: int = 32,
    reach: float = 0.5,
    steepness: float = 4.0,
    denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    score_thresh: float = 0.0,
    detections_per_img: int = 100,
    varifocal_alpha: float = 0.75,
    varifocal_gamma: float = 2.0,
    costs: MatchingCosts = COSTS,
    aux_weight: float = 1.0,
    classification_weight: float = 1.0,
    bbox_regression_weight: float = 5.0,
    bbox_giou_weight: float = 2.0,
    bbox_distribution_weight: float = 0.15,
    distillation_weight: float = 1.5,
) -> dict[str, Any]:
    """Builds DFINE's arguments from options; the defaults are those of the authors' code.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with an ELANEncoder. If it has no
            attributes `out_channels` and `strides`, give head.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        head: replaces the head that the next options build.
        num_queries: number of queries, if the pyramid has as many pixels.
        decoder_layers, heads, points, feedforward_channels, discrete: see DFINEHead.
        bins, reach, steepness: see `bin_moves`.
        denoising, label_noise, box_noise: see DenoisingOptions.
        score_thresh, detections_per_img: see RTDETR.
        varifocal_alpha, varifocal_gamma, costs, aux_weight: see RTDETR.
        *_weight: the factor of each loss.
    """
    if head is None:
        head = DFINEHead(
            backbone.out_channels,
            num_classes,
            len(backbone.strides),
            num_queries=num_queries,
            layers=decoder_layers,
            heads=heads,
            points=points,
            feedforward_channels=feedforward_channels,
            discrete=discrete,
            bins=bins,
            reach=reach,
            steepness=steepness,
        )
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "head": head,
        "denoising": DenoisingOptions(denoising, label_noise, box_noise),
        "score_thresh": score_thresh,
        "detections_per_img": detections_per_img,
        "varifocal_alpha": varifocal_alpha,
        "varifocal_gamma": varifocal_gamma,
        "costs": costs,
        "aux_weight": aux_weight,
        "loss_weights": {
            "classification": classification_weight,
            "bbox_regression": bbox_regression_weight,
            "bbox_giou": bbox_giou_weight,
            "bbox_distribution": bbox_distribution_weight,
            "distillation": distillation_weight,
        },
    }


class DFINE(RTDETR):
    """A detector of one box for each object, whose sides are distributions.

    Arguments as of RTDETR, with a DFINEHead. `aux_weight` is also of the losses of the first box.
    """

    head: DFINEHead

    def losses_of(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification, bbox_regression, bbox_giou, bbox_distribution, distillation.

        Each is a sum over the selection, the first box and all layers, as far as they predict what
        it needs; that of the denoising queries is added. The classification of a layer follows its
        own match. All other losses follow the gt that most layers give a query. Sums are divided by
        the number of pairs in the batch. Follows the authors' criterion.
        """
        targets = set_targets(batch, first_label=1)
        found, known = outputs.found, outputs.denoising
        match = matched(found.logits, found.boxes, targets, self.costs)  # (K, B, Q)
        common = most_common(match)
        every = torch.ones_like(common, dtype=torch.bool)
        losses = self._losses(found, match, common, targets, every)
        if outputs.denoised is None or known is None:
            return losses
        denoised = outputs.denoised
        denoised = denoised._replace(logits=of_used_queries(denoised.logits, known))
        match = known.match.expand(len(denoised.logits), -1, -1)
        targets = counted(targets, known.match)
        more = self._losses(denoised, match, known.match, targets, known.used)
        return {name: loss + more[name] for name, loss in losses.items()}

    def _losses(
        self,
        predictions: Predictions,
        match: Tensor,
        box_match: Tensor,
        targets: SetTargets,
        used: Tensor,
    ) -> dict[str, Tensor]:
        """The losses of some queries.

        Args:
            predictions: of the queries.
            match: (K, B, Q), the gt of each query, or -1; for the classification.
            box_match: (B, Q), for the other losses.
            targets: the gts, with the number of pairs of a layer.
            used: (B, Q) bool; other queries have no loss.
        """
        logits, boxes = widened(predictions.logits), widened(predictions.boxes)
        pairs = paired(boxes, match, targets)
        scores = self._classification(logits, pairs.labels, pairs.ious, targets)
        targets = counted(targets, box_match)
        pairs = paired(boxes, box_match.expand_as(match), targets)
        distributions = predictions.distributions
        ious = pairs.ious[-len(distributions) :]
        losses = {
            "classification": scores,
            **box_losses(boxes, pairs, targets),
            "bbox_distribution": localization_losses(
                distributions,
                predictions.first_boxes[0],
                pairs.boxes[-1],
                ious,
                self.head.moves,
                targets.number,
            ),
        }
        distilled = distillation_losses(distributions, logits[-1], ious, box_match >= 0, used)
        losses = summed_over_layers(losses, self.aux_weight)
        return losses | {"distillation": self.aux_weight * distilled.sum()}


class Size(NamedTuple):
    """Numbers of one of the paper's models, of DFINEHead and ELANEncoder.

    Attributes:
        channels: of the backbone's coarsest map, at most.
        decoder_layers, expansion, blocks: see there.
    """

    channels: float
    decoder_layers: int
    expansion: float
    blocks: int


# S, M, and L with X.
SIZES = (Size(1024, 3, 0.5, 1), Size(1536, 4, 1.0, 2), Size(math.inf, 6, 1.0, 3))


def d_fine(
    backbone: str = "hgnetv2_b4",
    num_classes: int = 91,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    neck: str | Neck = "elan",
    fpn_channels: int = 256,
    encoder_layers: int = 1,
    expansion: float | None = None,
    blocks: int | None = None,
    decoder_layers: int | None = None,
    **options: Any,
) -> DFINE:
    """A D-FINE with a timm backbone and levels 3 to 5.

    Numbers that are None follow the backbone's coarsest map, as in the paper: with at most 1024
    channels (HGNetV2-B0, ResNet-18 and 34) those of D-FINE-S, with at most 1536 (B2) those of M,
    else those of L.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "elan", which is D-FINE's own encoder, or another one; see `timm_pyramid`.
        fpn_channels: number of channels of the neck and the head.
        encoder_layers: of ELANEncoder.
        expansion, blocks: of ELANEncoder; None: 0.5, 1 and 1, and 1, 2 and 3 for S, M and L.
        decoder_layers: see DFINEHead; None: 3, 4 and 6 for S, M and L.
        options: keyword arguments of `d_fine_parts`, such as min_size and max_size.
    """
    build_neck = neck_named(neck)
    body, channels = timm_body(
        backbone,
        pretrained=pretrained_backbone,
        weights=backbone_weights,
        trainable_layers=trainable_backbone_layers,
        batch_norm=batch_norm,
        image_size=fixed_image_size(**options),
        maps=MAPS,
    )
    size = next(size for size in SIZES if channels[-1] <= size.channels)
    if build_neck is ELANEncoder:
        build_neck = functools.partial(
            ELANEncoder,
            layers=encoder_layers,
            expansion=size.expansion if expansion is None else expansion,
            blocks=size.blocks if blocks is None else blocks,
        )
    pyramid = BackboneWithFPN(body, build_neck(channels[-MAPS:], fpn_channels, None))
    layers = size.decoder_layers if decoder_layers is None else decoder_layers
    parts = d_fine_parts(pyramid, num_classes, decoder_layers=layers, **options)
    return channels_last(DFINE(**parts))
