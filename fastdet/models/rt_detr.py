# SPDX-License-Identifier: BSD-3-Clause
"""RT-DETR: a transformer that gives each object one box, without suppression.

Papers: https://arxiv.org/abs/2304.08069 (RT-DETR) and https://arxiv.org/abs/2407.17140 (version 2).
The locations of a pyramid with the highest class scores become queries. The layers of a decoder
read the pyramid around the box of each query and refine the box. Queries and objects are matched
one to one, in each layer; the class score learns the IoU of the box. In training, denoising queries
with known matches are added (`denoising.py`). Definitions and defaults are those of the authors'
code. There is no logit of background.

All shapes are fixed: in training there are `2 * denoising` more queries, whatever the
images have.
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
from fastdet.models.denoising import (
    Denoising,
    DenoisingOptions,
    check_denoising,
    denoising_of,
    of_used_queries,
)
from fastdet.models.detector import Detector, channels_last
from fastdet.models.hybrid_encoder import ConvNorm, HybridEncoder
from fastdet.models.losses import PRIOR_LOGIT, widened
from fastdet.models.necks import Neck, neck_named
from fastdet.models.pyramid_reading import PyramidReading, points_of_levels
from fastdet.models.query_detections import detections_of_sigmoid
from fastdet.models.query_selection import (
    BoxHead,
    LevelProjections,
    Queries,
    QuerySelection,
    class_layer,
    image_extents,
    split_known,
    with_selection,
)
from fastdet.models.relative_boxes import inverse_sigmoid
from fastdet.models.running import run
from fastdet.models.set_losses import (
    MatchingCosts,
    SetTargets,
    counted,
    iou_aware_loss,
    matched,
    query_losses,
    set_targets,
    summed_over_layers,
)
from fastdet.models.transformer import MLP, Attention, DecoderLayer, FeedForward, tokens_of
from fastdet.ops.detections import Detections

MAPS = 3  # of the body, that the builder's neck takes
NARROW = 512  # channels of the coarsest map of ResNet-18 and 34, for which the paper has less
COSTS, DENOISING = MatchingCosts(), DenoisingOptions()


class Predictions(NamedTuple):
    """What the layers of the decoder say of some queries.

    Attributes:
        logits: (L, B, Q, C - 1), of the IoU with an object of the class; the first is class 1.
        boxes: (L, B, Q, 4) cxcywh in fractions of the image.
    """

    logits: Tensor
    boxes: Tensor


class Outputs(NamedTuple):
    """The head's outputs.

    Attributes:
        found: of the queries; the first of its layers is their selection.
        denoised: of the denoising queries, without a selection; None except in training.
        denoising: these queries.
    """

    found: Predictions
    denoised: Predictions | None = None
    denoising: Denoising | None = None


class Refinement(nn.Module):
    """A layer of the decoder, and what it predicts.

    Args:
        layer: queries attend to each other and read the pyramid.
        channels: of the queries.
        num_classes: with background.
    """

    def __init__(self, layer: DecoderLayer, channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.cls_logits = class_layer(channels, num_classes)
        self.box_head = BoxHead(channels)


class RTDETRHead(nn.Module):
    """Selects queries and refines them.

    Args:
        channels: of the queries.
        num_classes: number of classes with background, which is class 0.
        levels: number of levels.
        in_channels: of the levels; None: channels.
        num_queries: see QuerySelection.
        layers: of the decoder.
        heads: of attention; fewer if they do not divide channels.
        points: that a query reads at each level and head: one number, or one for each level.
        feedforward_channels: hidden width of the layers; None: 4 * channels.
        offset_scale, discrete: see PyramidReading.

    Raises:
        ValueError: a number below 1; another number of points than of levels.
    """

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
        points: int | Sequence[int] = 4,
        feedforward_channels: int | None = None,
        offset_scale: float = 0.5,
        discrete: bool = False,
    ) -> None:
        super().__init__()
        points = points_of_levels(points, levels)
        check_counts(num_queries=num_queries, decoder_layers=layers, points=min(points))
        self.num_classes = num_classes
        before = channels if in_channels is None else in_channels
        self.inputs = LevelProjections(ConvNorm(before, channels, 1) for _ in range(levels))
        self.selection = QuerySelection(channels, num_classes, num_queries)
        self.query_positions = MLP(4, 2 * channels, channels, depth=2)
        width = 4 * channels if feedforward_channels is None else feedforward_channels
        heads = math.gcd(channels, heads)
        self.layers = nn.ModuleList(
            Refinement(
                DecoderLayer(
                    Attention(channels, heads),
                    PyramidReading(
                        channels, heads, points, offset_scale=offset_scale, discrete=discrete
                    ),
                    FeedForward(channels, width),
                    channels,
                ),
                channels,
                num_classes,
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
        maps = run(self.inputs, features)
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
        """The predictions of each layer."""
        tokens, boxes, undetached = queries.tokens, queries.boxes, queries.boxes
        found = []
        extents = extents.repeat(1, 2)[:, None]  # (B, 1, 4)
        refinement: Any
        for refinement in self.layers:
            positions = self.query_positions(boxes.to(pyramid.dtype))
            further = boxes * extents, pyramid, shapes
            tokens = refinement.layer(tokens, positions, *further, mask=queries.mask)
            deltas = widened(refinement.box_head(tokens))
            refined = (deltas + inverse_sigmoid(boxes)).sigmoid()
            # The loss of a layer teaches the layer before it, too (DINO's "look forward twice").
            learned = (deltas + inverse_sigmoid(undetached)).sigmoid() if self.training else refined
            found.append((refinement.cls_logits(tokens), learned))
            undetached, boxes = refined, refined.detach()
        return Predictions(*(torch.stack(parts) for parts in zip(*found, strict=True)))


def rt_detr_parts(
    backbone: Any,
    num_classes: int,
    *,
    min_size: int | Sequence[int] = 640,
    max_size: int = 640,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    head: RTDETRHead | None = None,
    num_queries: int = 300,
    decoder_layers: int = 6,
    heads: int = 8,
    points: int | Sequence[int] = 4,
    feedforward_channels: int | None = None,
    discrete: bool = False,
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
) -> dict[str, Any]:
    """Builds RTDETR's arguments from options; the defaults are those of the authors' code.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with a HybridEncoder. If it has no
            attributes `out_channels` and `strides`, give head.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        head: replaces the head that the next options build.
        num_queries: number of queries, if the pyramid has as many pixels.
        decoder_layers, heads, points, feedforward_channels, discrete: see RTDETRHead.
        denoising, label_noise, box_noise: see DenoisingOptions.
        score_thresh, detections_per_img: see RTDETR.
        varifocal_alpha, varifocal_gamma, costs, aux_weight: see RTDETR.
        *_weight: the factor of each loss.
    """
    if head is None:
        head = RTDETRHead(
            backbone.out_channels,
            num_classes,
            len(backbone.strides),
            num_queries=num_queries,
            layers=decoder_layers,
            heads=heads,
            points=points,
            feedforward_channels=feedforward_channels,
            discrete=discrete,
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
        },
    }


class RTDETR(Detector):
    """A detector of one box for each object, without anchors and without suppression.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps of each level, finest first: a list, a dict or one
            tensor.
        head: maps -> predictions, such as RTDETRHead.
        denoising: the further queries of training.
        score_thresh: a detection's score is above this.
        detections_per_img: D, maximum number of detections of an image: the best pairs of query
            and class.
        varifocal_alpha, varifocal_gamma: see `iou_aware_loss`.
        costs: of a query and an object in the matching.
        aux_weight: of the losses of the selection and of each layer but the last.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or a number is out of range.
    """

    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        head: Any,
        *,
        denoising: DenoisingOptions = DENOISING,
        score_thresh: float = 0.0,
        detections_per_img: int = 100,
        varifocal_alpha: float = 0.75,
        varifocal_gamma: float = 2.0,
        costs: MatchingCosts = COSTS,
        aux_weight: float = 1.0,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(border, head.num_classes, loss_weights=loss_weights)
        check_counts(detections_per_img=detections_per_img)
        check_denoising(denoising)
        self.backbone = backbone
        self.head = head
        self.denoising = denoising
        self.score_thresh = score_thresh
        self.detections_per_img = detections_per_img
        self.varifocal_alpha = varifocal_alpha
        self.varifocal_gamma = varifocal_gamma
        self.costs = costs
        self.aux_weight = aux_weight

    def class_layers(self) -> dict[str, float]:
        """The last layers of all classifiers, and the embedding of denoising queries."""
        names = ["head.selection", *(f"head.layers.{i}" for i in range(len(self.head.layers)))]
        logits = {f"{name}.cls_logits": PRIOR_LOGIT for name in names}
        return {**logits, "head.selection.label_embedding": 0.0}

    def outputs(self, batch: Batch) -> Outputs:
        """Predictions of the selection and all layers; in training, also of denoising queries."""
        features = feature_maps(run(self.backbone, batch.images))
        known = None
        if self.training and self.denoising.queries:
            known = denoising_of(batch, self.num_classes, self.denoising)
        found, denoised = self.head(features, image_extents(batch), known)
        return Outputs(found, denoised, known)

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification, bbox_regression and bbox_giou.

        Each is a sum over the selection and all layers, divided by the number of objects in the
        batch; that of the denoising queries, divided by the number of their positives, is added.
        Follows the authors' criterion.
        """
        targets = set_targets(batch, first_label=1)
        match = matched(*outputs.found, targets, self.costs)  # (L + 1, B, Q)
        losses = query_losses(*outputs.found, match, targets, self._classification)
        losses = summed_over_layers(losses, self.aux_weight)
        known = outputs.denoising
        if outputs.denoised is None or known is None:
            return losses
        logits, boxes = outputs.denoised
        logits = of_used_queries(logits, known)
        match = known.match.expand(len(logits), -1, -1)
        targets = counted(targets, known.match)
        more = query_losses(logits, boxes, match, targets, self._classification)
        more = summed_over_layers(more, self.aux_weight)
        return {name: loss + more[name] for name, loss in losses.items()}

    def _classification(
        self, logits: Tensor, labels: Tensor, ious: Tensor, targets: SetTargets
    ) -> Tensor:
        alpha, gamma = self.varifocal_alpha, self.varifocal_gamma
        return iou_aware_loss(logits, labels, ious, targets, alpha, gamma)

    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """The pairs of query and class with the highest scores, of the last layer."""
        return detections_of_sigmoid(
            outputs.found.logits[-1],
            outputs.found.boxes[-1],
            batch.sizes,
            score_thresh=self.score_thresh,
            detections_per_img=self.detections_per_img,
        )


def rt_detr(
    backbone: str = "resnet50",
    num_classes: int = 91,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    neck: str | Neck = "hybrid",
    fpn_channels: int = 256,
    encoder_layers: int = 1,
    expansion: float | None = None,
    decoder_layers: int | None = None,
    **options: Any,
) -> RTDETR:
    """An RT-DETR with a timm backbone and levels 3 to 5.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "hybrid", which is RT-DETR's own encoder, or another one; see `timm_pyramid`.
        fpn_channels: number of channels of the neck and the head.
        encoder_layers: of HybridEncoder.
        expansion: of HybridEncoder; None: as in the paper, 0.5 if the backbone's last map has at
            most 512 channels (ResNet-18 and 34), else 1.
        decoder_layers: see RTDETRHead; None: 3 and 6 in the same cases.
        options: keyword arguments of `rt_detr_parts`, such as min_size and max_size.
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
    narrow = channels[-1] <= NARROW
    if build_neck is HybridEncoder:
        expansion = (0.5 if narrow else 1.0) if expansion is None else expansion
        build_neck = functools.partial(HybridEncoder, layers=encoder_layers, expansion=expansion)
    pyramid = BackboneWithFPN(body, build_neck(channels[-MAPS:], fpn_channels, None))
    layers = (3 if narrow else 6) if decoder_layers is None else decoder_layers
    parts = rt_detr_parts(pyramid, num_classes, decoder_layers=layers, **options)
    return channels_last(RTDETR(**parts))
