# SPDX-License-Identifier: BSD-3-Clause
"""FCOS: a one-stage detector without anchors; a class, a box and a centerness for every location.

Definitions, defaults, loss names and parameter names are torchvision's (models/detection/fcos.py).
As there, the logits have a column for class 0, background, which is never a target. Paper:
https://arxiv.org/abs/1904.01355. A location is the centre of a square. The side of the square is
the stride of the level, and the unit of the deltas.
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
    clipped,
    decode_distances,
    head_conv,
    norm_tower,
    suppressed,
    suppression_numbers,
)
from fastdet.models.deprecation import batch_norm_from_frozen, or_from_options
from fastdet.models.detector import Detector, channels_last
from fastdet.models.losses import PRIOR_LOGIT, masked_iou_loss, widened
from fastdet.models.necks import LastLevelP6P7, Neck
from fastdet.models.running import run
from fastdet.ops import sigmoid_focal_loss
from fastdet.ops.detections import Candidates, Detections
from fastdet.ops.padded_rows import row_mask, take_rows


class Outputs(NamedTuple):
    """The head's outputs for each location, level by level."""

    logits: list[Tensor]  # L x (B, A_l, C)
    deltas: list[Tensor]  # L x (B, A_l, 4): distances to left, top, right, bottom, in sides
    centredness: list[Tensor]  # L x (B, A_l), logits
    anchors: Tensor  # (A, 4), the squares


FCOSClassificationHead = ClassificationHead


class FCOSRegressionHead(nn.Module):
    """The distances to the four sides of the box, and the centerness, for each location.

    Args:
        conv: the layers before the last layers.
        bbox_reg, bbox_ctrness: the last layers, with 4 output channels and with 1.
    """

    def __init__(self, conv: nn.Module, bbox_reg: nn.Module, bbox_ctrness: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.bbox_reg = bbox_reg
        self.bbox_ctrness = bbox_ctrness

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid -> deltas (B, A_l, 4), >= 0, and centerness logits (B, A_l), for each level."""
        hidden = [self.conv(feature) for feature in features]
        deltas = in_anchor_order([F.relu(self.bbox_reg(x)) for x in hidden], 4)
        centredness = in_anchor_order([self.bbox_ctrness(x) for x in hidden], 1)
        return deltas, [level.squeeze(2) for level in centredness]


class FCOSHead(nn.Module):
    """A classification head and a regression head, without shared layers."""

    def __init__(
        self, classification_head: FCOSClassificationHead, regression_head: FCOSRegressionHead
    ) -> None:
        super().__init__()
        self.classification_head = classification_head
        self.regression_head = regression_head

    @property
    def num_classes(self) -> int:
        """Number of classes with background."""
        return self.classification_head.num_classes


def fcos_head(in_channels: int, num_classes: int) -> FCOSHead:
    """torchvision's head: two towers of four convolutions, each with GroupNorm and ReLU."""
    cls_logits = class_conv(in_channels, num_classes)
    return FCOSHead(
        FCOSClassificationHead(norm_tower(in_channels), cls_logits, num_classes),
        FCOSRegressionHead(
            norm_tower(in_channels), head_conv(in_channels, 4), head_conv(in_channels, 1)
        ),
    )


def fcos_parts(
    backbone: Any,
    num_classes: int,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    anchor_sizes: Sequence[float] = (8, 16, 32, 64, 128),
    cells: Cells | None = None,
    head: FCOSHead | None = None,
    center_sampling_radius: float = 1.5,
    score_thresh: float = 0.2,
    nms_thresh: float = 0.6,
    detections_per_img: int = 100,
    topk_candidates: int = 1000,
    classification_weight: float = 1.0,
    bbox_regression_weight: float = 1.0,
    bbox_ctrness_weight: float = 1.0,
) -> dict[str, Any]:
    """Builds FCOS's arguments from options with torchvision's names and defaults.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with LastLevelP6P7 or a backbone of
            torchvision. If it has no attribute `out_channels`, give head.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        anchor_sizes: for each level, the side of its square in pixels: the stride of the level.
        cells: one square for each level, instead of anchor_sizes.
        head: replaces the head that `fcos_head` builds.
        center_sampling_radius, score_thresh, nms_thresh: see FCOS.
        detections_per_img, topk_candidates: see FCOS.
        *_weight: the factor of each loss.
    """
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "head": fcos_head(backbone.out_channels, num_classes) if head is None else head,
        "cells": cells or cell_anchors([(size,) for size in anchor_sizes], (1.0,)),
        "center_sampling_radius": center_sampling_radius,
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


class FCOS(Detector):
    """A one-stage detector without anchors.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps of each level, finest first: a list, a dict or one
            tensor.
        head: its two parts run on these maps.
        cells: one square for each level; the side is the stride of the level.
        center_sampling_radius: a location can be positive only if its distance from the centre of
            the box, along x and along y, is less than this number of strides.
        score_thresh: a detection's score is above this. The score is
            sqrt(probability * centerness).
        nms_thresh: a detection suppresses detections of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image.
        topk_candidates: maximum number of (location, class) pairs of each level that enter NMS.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or a number is below 1.
    """

    @or_from_options(fcos_parts)
    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        head: FCOSHead,
        cells: Cells,
        *,
        center_sampling_radius: float,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        topk_candidates: int,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(border, head.num_classes, loss_weights=loss_weights)
        check_counts(topk_candidates=topk_candidates, detections_per_img=detections_per_img)
        self.backbone = backbone
        self.head = head
        self.cells = cells
        self.center_sampling_radius = center_sampling_radius
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.topk_candidates = topk_candidates

    def class_layers(self) -> dict[str, float]:
        """The last layer of the classification head."""
        return {"head.classification_head.cls_logits": PRIOR_LOGIT}

    def anchor_cells(self) -> Cells:
        """The square of each level."""
        return self.cells

    def outputs(self, batch: Batch) -> Outputs:
        """Logits, deltas and centerness of each level, and the squares."""
        features = feature_maps(run(self.backbone, batch.images))
        logits = run(self.head.classification_head, features)
        deltas, centredness = run(self.head.regression_head, features)
        anchors = pyramid_anchors(batch.images, features, self.cells)
        return Outputs(logits, deltas, centredness, anchors)

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification, bbox_regression and bbox_ctrness.

        Each is a sum over locations, divided by the number of positives in the batch. Follows
        torchvision's FCOSHead.compute_loss.
        """
        anchors = outputs.anchors
        match = self._match(anchors, [level.shape[1] for level in outputs.logits], batch)
        positive = match >= 0  # (B, A)
        count = positive.sum().clamp(min=1)
        labels = take_rows(batch.gt_labels, match).where(positive, -1)
        logits = torch.cat(outputs.logits, dim=1)  # (B, A, C)
        own = take_rows(batch.gt_boxes, match)  # (B, A, 4)
        boxes = decode_distances(widened(torch.cat(outputs.deltas, dim=1)), anchors)
        giou = masked_iou_loss("giou", boxes, own, positive)
        centredness = F.binary_cross_entropy_with_logits(
            widened(torch.cat(outputs.centredness, dim=1)),
            centredness_of(own, anchors, positive),
            weight=positive.to(boxes.dtype),
            reduction="sum",
        )
        return {
            "classification": sigmoid_focal_loss(logits, labels, reduction="sum", divisor=count),
            "bbox_regression": giou.sum() / count,
            "bbox_ctrness": centredness / count,
        }

    def _match(self, anchors: Tensor, level_rows: list[int], batch: Batch) -> Tensor:
        """Assigns a ground-truth box to each location, (B, A) int64; -1 if there is none.

        The location must be inside the box and near its centre. The distance to the farthest side
        must be in the range of the level: 4 to 8 times the side of its square. If several boxes
        fit, the smallest is assigned. Follows torchvision's FCOS.compute_loss.
        """
        boxes = batch.gt_boxes[:, None]  # (B, 1, G, 4)
        centres = ((anchors[:, :2] + anchors[:, 2:]) / 2)[:, None]  # (A, 1, 2)
        side = (anchors[:, 2] - anchors[:, 0])[:, None]  # (A, 1)
        off_centre = (centres - (boxes[..., :2] + boxes[..., 2:]) / 2).abs().amax(dim=3)
        distances = torch.cat((centres - boxes[..., :2], boxes[..., 2:] - centres), dim=3)
        farthest = distances.amax(dim=3)  # (B, A, G)
        row = torch.arange(len(anchors), device=anchors.device)[:, None]
        lower = (4 * side).where(row >= level_rows[0], 0.0)
        upper = (8 * side).where(row < len(anchors) - level_rows[-1], torch.inf)
        fits = off_centre < self.center_sampling_radius * side
        fits &= distances.amin(dim=3) > 0
        fits &= (farthest > lower) & (farthest < upper)
        fits &= row_mask(batch.gt_counts, boxes.shape[2])[:, None]
        areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # (B, 1, G)
        smallness, match = (1e8 - areas).where(fits, 0.0).max(dim=2)
        return match.where(smallness >= 1e-5, -1)

    @torch.no_grad()
    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """Follows torchvision's FCOS.postprocess_detections."""
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
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_img,
        )

    def candidates_of(self, outputs: Outputs, batch: Batch) -> Candidates:
        """Each location's box, and its score of each class."""
        logits = widened(torch.cat(outputs.logits, dim=1))
        centredness = widened(torch.cat(outputs.centredness, dim=1))
        boxes = decode_distances(widened(torch.cat(outputs.deltas, dim=1)), outputs.anchors)
        return Candidates(clipped(boxes, batch.sizes), _scores(logits, centredness))

    def suppression(self) -> dict[str, Any]:
        """The model's numbers; every class of a box is a candidate."""
        return suppression_numbers(self.score_thresh, self.nms_thresh, self.detections_per_img)

    def _candidates(
        self, logits: Tensor, deltas: Tensor, centredness: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of location and class of a level: scores (B, K), boxes, labels."""
        scores = _scores(widened(logits), widened(centredness))
        scores, location, labels = best_pairs(scores, self.topk_candidates)
        boxes = decode_distances(widened(take_rows(deltas, location)), anchors[location])
        return scores, boxes, labels


def _scores(logits: Tensor, centredness: Tensor) -> Tensor:
    """(B, A, C) and (B, A) -> (B, A, C)."""
    return (logits.sigmoid() * centredness.sigmoid()[..., None]).sqrt()


@batch_norm_from_frozen
def fcos(
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
) -> FCOS:
    """An FCOS with a timm backbone and a feature pyramid of levels 3 to 7.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid and the head.
        options: keyword arguments of `fcos_parts`, such as min_size and max_size.
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
    return channels_last(FCOS(**fcos_parts(pyramid, num_classes, **options)))
