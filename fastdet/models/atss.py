# SPDX-License-Identifier: BSD-3-Clause
"""ATSS: RetinaNet's boxes with one anchor for a location; statistics choose the positives.

Paper: https://arxiv.org/abs/1912.02424. Definitions and defaults are mmdetection's (ATSSHead and
its configuration atss_r50_fpn_1x_coco); loss and parameter names are those of FCOS. The only anchor
of a location is a square, 8 strides wide. `assign_atss` chooses the positives. As in FCOS the
logits have a column for class 0, background, which is never a target.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models.anchors import Cells, cell_anchors, in_anchor_order, pyramid_anchors
from fastdet.models.backbones import feature_maps, fixed_image_size, timm_pyramid
from fastdet.models.batch import Batch
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.border import IMAGE_MEAN, IMAGE_STD, Border
from fastdet.models.checks import check_counts
from fastdet.models.dense_heads import (
    ClassificationHead,
    best_pairs,
    centredness_of,
    class_conv,
    head_conv,
    norm_tower,
    suppressed,
    suppression_numbers,
)
from fastdet.models.detector import Detector, channels_last
from fastdet.models.losses import PRIOR_LOGIT, masked_iou_loss, widened
from fastdet.models.necks import LastLevelP6P7, Neck
from fastdet.models.running import run
from fastdet.ops import assign_atss, decode_boxes, sigmoid_focal_loss
from fastdet.ops.detections import Candidates, Detections
from fastdet.ops.padded_rows import take_rows

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # mmdetection's target_stds are their inverses


class Outputs(NamedTuple):
    """The head's outputs for each anchor, level by level."""

    logits: list[Tensor]  # L x (B, A_l, C)
    deltas: list[Tensor]  # L x (B, A_l, 4)
    centredness: list[Tensor]  # L x (B, A_l), logits
    anchors: Tensor  # (A, 4), squares


class ATSSRegressionHead(nn.Module):
    """Deltas, times a learned factor of the level, and the centerness of each anchor.

    Args:
        conv: the layers before the last layers.
        bbox_reg, bbox_ctrness: the last layers, with 4 output channels and with 1.
        levels: number of levels of the pyramid.
    """

    def __init__(
        self, conv: nn.Module, bbox_reg: nn.Module, bbox_ctrness: nn.Module, levels: int
    ) -> None:
        super().__init__()
        self.conv = conv
        self.bbox_reg = bbox_reg
        self.bbox_ctrness = bbox_ctrness
        self.scale = nn.Parameter(torch.ones(levels))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid -> deltas (B, A_l, 4) and centerness logits (B, A_l), for each level."""
        hidden = [self.conv(feature) for feature in features]
        deltas = [self.bbox_reg(x) * self.scale[level] for level, x in enumerate(hidden)]
        centredness = in_anchor_order([self.bbox_ctrness(x) for x in hidden], 1)
        return in_anchor_order(deltas, 4), [level.squeeze(2) for level in centredness]


class ATSSHead(nn.Module):
    """A classification head and a regression head, without shared layers."""

    def __init__(
        self, classification_head: ClassificationHead, regression_head: ATSSRegressionHead
    ) -> None:
        super().__init__()
        self.classification_head = classification_head
        self.regression_head = regression_head

    @property
    def num_classes(self) -> int:
        """Number of classes with background."""
        return self.classification_head.num_classes

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Pyramid -> logits (B, A_l, C), deltas (B, A_l, 4), centerness logits (B, A_l)."""
        return self.classification_head(features), *self.regression_head(features)


def atss_head(in_channels: int, num_classes: int, levels: int = 5) -> ATSSHead:
    """The head of the paper: two towers of four convolutions, each with GroupNorm and ReLU."""
    return ATSSHead(
        ClassificationHead(
            norm_tower(in_channels), class_conv(in_channels, num_classes), num_classes
        ),
        ATSSRegressionHead(
            norm_tower(in_channels), head_conv(in_channels, 4), head_conv(in_channels, 1), levels
        ),
    )


def atss_parts(
    backbone: Any,
    num_classes: int,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    anchor_sizes: Sequence[float] = (64, 128, 256, 512, 1024),
    cells: Cells | None = None,
    head: ATSSHead | None = None,
    assigner_topk: int = 9,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.6,
    detections_per_img: int = 100,
    topk_candidates: int = 1000,
    classification_weight: float = 1.0,
    bbox_regression_weight: float = 2.0,
    bbox_ctrness_weight: float = 1.0,
) -> dict[str, Any]:
    """Builds ATSS's arguments from options; the defaults are mmdetection's.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with LastLevelP6P7. If it has no
            attribute `out_channels`, give head.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        anchor_sizes: for each level, the side of its square in pixels: 8 strides.
        cells: one anchor for each level, instead of anchor_sizes.
        head: replaces the head that `atss_head` builds.
        assigner_topk, score_thresh, nms_thresh: see ATSS.
        detections_per_img, topk_candidates: see ATSS.
        *_weight: the factor of each loss.
    """
    cells = cells or cell_anchors([(size,) for size in anchor_sizes], (1.0,))
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "head": head or atss_head(backbone.out_channels, num_classes, len(cells)),
        "cells": cells,
        "assigner_topk": assigner_topk,
        "score_thresh": score_thresh,
        "nms_thresh": nms_thresh,
        "detections_per_img": detections_per_img,
        "topk_candidates": topk_candidates,
        "loss_weights": {
            "classification": classification_weight,
            "bbox_regression": bbox_regression_weight,
            "bbox_ctrness": bbox_ctrness_weight,
        },
    }


class ATSS(Detector):
    """A one-stage detector with one anchor for each location.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps of each level, finest first: a list, a dict or one
            tensor.
        head: maps -> logits, deltas and centerness.
        cells: one anchor for each level.
        assigner_topk: how many candidates a box has on each level; see `assign_atss`.
        score_thresh: a detection's probability is above this. Its score is probability *
            centerness.
        nms_thresh: a detection suppresses detections of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image.
        topk_candidates: maximum number of (location, class) pairs of each level that enter NMS,
            those with the highest probabilities.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or a number is below 1.
    """

    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        head: ATSSHead,
        cells: Cells,
        *,
        assigner_topk: int,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        topk_candidates: int,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(border, head.num_classes, loss_weights=loss_weights)
        check_counts(
            topk_candidates=topk_candidates,
            assigner_topk=assigner_topk,
            detections_per_img=detections_per_img,
        )
        self.backbone = backbone
        self.head = head
        self.cells = cells
        self.assigner_topk = assigner_topk
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.topk_candidates = topk_candidates

    def class_layers(self) -> dict[str, float]:
        """The last layer of the classification head."""
        return {"head.classification_head.cls_logits": PRIOR_LOGIT}

    def anchor_cells(self) -> Cells:
        """The anchor of each level."""
        return self.cells

    def outputs(self, batch: Batch) -> Outputs:
        """Logits, deltas and centerness of each level, and the anchors."""
        features = feature_maps(run(self.backbone, batch.images))
        logits, deltas, centredness = run(self.head, features)
        anchors = pyramid_anchors(batch.images, features, self.cells)
        return Outputs(logits, deltas, centredness, anchors)

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification, bbox_regression and bbox_ctrness.

        Classification and centerness are sums over anchors, divided by the number of positives in
        the batch. The box loss is a mean over positives, weighted by the centerness of their boxes.
        Follows mmdetection's ATSSHead.loss_by_feat.
        """
        match, _ = assign_atss(
            outputs.anchors,
            [level.shape[1] for level in outputs.logits],
            batch.gt_boxes,
            batch.gt_counts,
            self.assigner_topk,
        )  # (B, A)
        positive = match >= 0
        count = positive.sum().clamp(min=1)
        labels = take_rows(batch.gt_labels, match).where(positive, -1)
        own = take_rows(batch.gt_boxes, match)  # (B, A, 4)
        logits = torch.cat(outputs.logits, dim=1)  # (B, A, C)
        deltas = widened(torch.cat(outputs.deltas, dim=1))
        boxes = decode_boxes(deltas, outputs.anchors, DELTA_WEIGHTS)
        targets = centredness_of(own, outputs.anchors, positive)
        giou = masked_iou_loss("giou", boxes, own, positive) * targets
        centredness = F.binary_cross_entropy_with_logits(
            widened(torch.cat(outputs.centredness, dim=1)),
            targets,
            weight=positive.to(targets.dtype),
            reduction="sum",
        )
        return {
            "classification": sigmoid_focal_loss(logits, labels, reduction="sum", divisor=count),
            "bbox_regression": giou.sum() / targets.sum().clamp(min=1),
            "bbox_ctrness": centredness / count,
        }

    @torch.no_grad()
    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """Follows mmdetection's BaseDenseHead.predict_by_feat, with centerness as score factor."""
        levels = zip(
            outputs.logits,
            outputs.deltas,
            outputs.centredness,
            outputs.anchors.split([level.shape[1] for level in outputs.logits]),
            strict=True,
        )
        return suppressed(
            [self._candidates(*level) for level in levels],
            batch.sizes,
            0.0,  # score_thresh is one of the probability: see _scores
            self.nms_thresh,
            self.detections_per_img,
        )

    def candidates_of(self, outputs: Outputs, batch: Batch) -> Candidates:
        """Each anchor's box, and its score of each class; 0 for a probability below the threshold.

        The threshold is one of the probability, not of the score, so it is applied here.
        """
        deltas = widened(torch.cat(outputs.deltas, dim=1))
        probabilities = widened(torch.cat(outputs.logits, dim=1)).sigmoid()
        centredness = widened(torch.cat(outputs.centredness, dim=1))
        boxes = decode_boxes(deltas, outputs.anchors, DELTA_WEIGHTS, batch.sizes)
        return Candidates(boxes, self._scores(probabilities, centredness[..., None]))

    def suppression(self) -> dict[str, Any]:
        """The model's numbers; every class of a box is a candidate."""
        return suppression_numbers(0.0, self.nms_thresh, self.detections_per_img)

    def _scores(self, probabilities: Tensor, centredness: Tensor) -> Tensor:
        """Probability * centerness, but 0 where the probability is not above the threshold."""
        scores = probabilities * centredness.sigmoid()
        return scores.where(probabilities > self.score_thresh, 0.0)

    def _candidates(
        self, logits: Tensor, deltas: Tensor, centredness: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of anchor and class of a level: scores (B, K), boxes, labels."""
        probabilities = widened(logits).sigmoid()
        probabilities, row, labels = best_pairs(probabilities, self.topk_candidates)
        scores = self._scores(probabilities, widened(centredness.gather(1, row)))
        boxes = decode_boxes(widened(take_rows(deltas, row)), anchors[row], DELTA_WEIGHTS)
        return scores, boxes, labels


def atss(
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
) -> ATSS:
    """An ATSS with a timm backbone and a feature pyramid of levels 3 to 7.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid and the head.
        options: keyword arguments of `atss_parts`, such as min_size and max_size.
    """
    pyramid = timm_pyramid(
        backbone,
        lambda channels: LastLevelP6P7(channels, channels),
        maps=3,
        neck=neck,
        fpn_channels=fpn_channels,
        pretrained_backbone=pretrained_backbone,
        backbone_weights=backbone_weights,
        trainable_backbone_layers=trainable_backbone_layers,
        batch_norm=batch_norm,
        image_size=fixed_image_size(**options),
    )
    return channels_last(ATSS(**atss_parts(pyramid, num_classes, **options)))
