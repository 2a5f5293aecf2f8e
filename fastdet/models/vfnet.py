# SPDX-License-Identifier: BSD-3-Clause
"""VarifocalNet: a class's score is the IoU that its box will have; boxes are refined once.

Paper: https://arxiv.org/abs/2008.13367. Definitions and defaults are mmdetection's (VFNetHead and
its configuration vfnet_r50_fpn_1x_coco); parameter names are those of FCOS. A location predicts a
box by the distances to its four sides. Two star-shaped deformable convolutions then read the
features at nine points of this box: one refines the box, one predicts the classes. As in FCOS the
logits have a column for class 0, background, which is never a target.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdet.models.anchors import Cells, cell_anchors, in_anchor_order, pyramid_anchors
from fastdet.models.backbones import feature_maps, fixed_image_size, timm_pyramid
from fastdet.models.batch import Batch
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.border import IMAGE_MEAN, IMAGE_STD, Border
from fastdet.models.checks import check_counts
from fastdet.models.dense_heads import (
    best_pairs,
    class_conv,
    clipped,
    decode_distances,
    head_conv,
    norm_tower,
    suppressed,
    suppression_numbers,
)
from fastdet.models.detector import Detector, channels_last
from fastdet.models.losses import (
    PRIOR_LOGIT,
    label_targets,
    masked_iou_loss,
    row_ious,
    varifocal_loss,
    widened,
)
from fastdet.models.necks import LastLevelP6P7, Neck
from fastdet.models.running import run
from fastdet.ops import assign_atss, deform_conv2d
from fastdet.ops.detections import Candidates, Detections
from fastdet.ops.padded_rows import take_rows

FINEST_STRIDE = 8  # of the pyramid that the builder makes
GRADIENT_SHARE = 0.1  # of the gradient of the offsets that reaches the first box
LEAST_IOU = 1e-6  # a positive's target is above 0


class Outputs(NamedTuple):
    """The head's outputs for each location, level by level."""

    logits: list[Tensor]  # L x (B, A_l, C)
    distances: list[Tensor]  # L x (B, A_l, 4) to left, top, right, bottom, in sides of the square
    refined: list[Tensor]  # L x (B, A_l, 4), the same after the refinement
    squares: Tensor  # (A, 4)


class StarConv(nn.Module):
    """A 3x3 deformable convolution without bias, and a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        """(B, C, H, W) and `star_offsets` (B, 18, H, W) -> (B, C, H, W)."""
        return torch.relu(deform_conv2d(features, offsets, self.weight, padding=1))


def star_offsets(distances: Tensor) -> Tensor:
    """Offsets that move the taps of a 3x3 kernel to the corners, sides and centre of a box.

    Args:
        distances: (B, 4, H, W) to left, top, right and bottom, in pixels of the map.

    Returns:
        (B, 18, H, W), y before x for each tap, row by row. A tenth of their gradient reaches the
        distances.
    """
    slowed = GRADIENT_SHARE * distances + (1 - GRADIENT_SHARE) * distances.detach()
    left, top, right, bottom = slowed.unbind(1)
    none = torch.zeros_like(left)
    # A tap at -1 or 1 moves on to the side of the box.
    rows, columns = (1 - top, none, bottom - 1), (1 - left, none, right - 1)
    return torch.stack([axis for y in rows for x in columns for axis in (y, x)], dim=1)


class VFNetClassificationHead(nn.Module):
    """A logit for each location and class: of the IoU that its box has if the class is right.

    Args:
        conv: the layers before the star convolution.
        star_conv: reads the features at nine points of the box.
        cls_logits: the last layer; its output channels are the classes.
        num_classes: number of classes with background, which is class 0.
    """

    def __init__(
        self, conv: nn.Module, star_conv: StarConv, cls_logits: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = conv
        self.star_conv = star_conv
        self.cls_logits = cls_logits

    def forward(self, features: Sequence[Tensor], offsets: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid and offsets (B, 18, H_l, W_l) -> (B, A_l, num_classes) for each level."""
        logits = [
            self.cls_logits(self.star_conv(self.conv(x), own))
            for x, own in zip(features, offsets, strict=True)
        ]
        return in_anchor_order(logits, self.num_classes)


class VFNetRegressionHead(nn.Module):
    """The distances to the four sides of the box of each location, and refined ones.

    Args:
        conv: the layers before the others.
        first_conv: further layers before bbox_reg.
        bbox_reg: the last layer of the first distances, with 4 output channels.
        star_conv: reads the features at nine points of the first box.
        bbox_refine: the last layer of the factors that refine the distances, with 4 channels.
        levels: number of levels of the pyramid.
        sides: for each level, the unit of distances: the side of a location's square, in strides.
    """

    def __init__(
        self,
        conv: nn.Module,
        first_conv: nn.Module,
        bbox_reg: nn.Module,
        star_conv: StarConv,
        bbox_refine: nn.Module,
        levels: int,
        sides: Sequence[float],
    ) -> None:
        super().__init__()
        self.conv = conv
        self.first_conv = first_conv
        self.bbox_reg = bbox_reg
        self.star_conv = star_conv
        self.bbox_refine = bbox_refine
        self.scale = nn.Parameter(torch.ones(levels))
        self.refine_scale = nn.Parameter(torch.ones(levels))
        self.sides = tuple(sides)

    def forward(
        self, features: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Pyramid -> distances and refined ones, (B, A_l, 4), and offsets (B, 18, H_l, W_l)."""
        distances, refined, offsets = [], [], []
        for level, feature in enumerate(features):
            hidden = self.conv(feature)
            first = self.bbox_reg(self.first_conv(hidden)) * self.scale[level]
            distances.append(widened(first).exp())
            offsets.append(star_offsets(distances[level] * self.sides[level]))
            hidden = self.star_conv(hidden, offsets[level])
            factors = widened(self.bbox_refine(hidden) * self.refine_scale[level]).exp()
            refined.append(distances[level].detach() * factors)
        return in_anchor_order(distances, 4), in_anchor_order(refined, 4), offsets


class VFNetHead(nn.Module):
    """A classification head and a regression head; the former reads at the boxes of the latter."""

    def __init__(
        self, classification_head: VFNetClassificationHead, regression_head: VFNetRegressionHead
    ) -> None:
        super().__init__()
        self.classification_head = classification_head
        self.regression_head = regression_head

    @property
    def num_classes(self) -> int:
        """Number of classes with background."""
        return self.classification_head.num_classes

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Pyramid -> logits (B, A_l, C), distances (B, A_l, 4), refined distances (B, A_l, 4)."""
        distances, refined, offsets = self.regression_head(features)
        return self.classification_head(features, offsets), distances, refined


def vfnet_head(
    in_channels: int, num_classes: int, levels: int = 5, sides: Sequence[float] = ()
) -> VFNetHead:
    """The head of the paper: towers of three convolutions, each with GroupNorm and ReLU.

    Args:
        in_channels: of each level of the pyramid.
        num_classes: number of classes with background.
        levels: number of levels of the pyramid.
        sides: for each level, the side of a location's square, in strides; empty: 8.
    """
    return VFNetHead(
        VFNetClassificationHead(
            norm_tower(in_channels, 3),
            StarConv(in_channels),
            class_conv(in_channels, num_classes),
            num_classes,
        ),
        VFNetRegressionHead(
            norm_tower(in_channels, 3),
            norm_tower(in_channels, 1),
            head_conv(in_channels, 4),
            StarConv(in_channels),
            head_conv(in_channels, 4),
            levels,
            sides or (8.0,) * levels,
        ),
    )


def vfnet_parts(
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
    head: VFNetHead | None = None,
    assigner_topk: int = 9,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.6,
    detections_per_img: int = 100,
    topk_candidates: int = 1000,
    varifocal_alpha: float = 0.75,
    varifocal_gamma: float = 2.0,
    classification_weight: float = 1.0,
    bbox_regression_weight: float = 1.5,
    bbox_refinement_weight: float = 2.0,
) -> dict[str, Any]:
    """Builds VFNet's arguments from options; the defaults are mmdetection's.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with LastLevelP6P7. If it has no
            attribute `out_channels`, or its finest stride is not 8, give head.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        anchor_sizes: for each level, the side of its square in pixels: 8 strides.
        cells: one square for each level, instead of anchor_sizes.
        head: replaces the head that `vfnet_head` builds.
        assigner_topk, score_thresh, nms_thresh: see VFNet.
        detections_per_img, topk_candidates: see VFNet.
        varifocal_alpha, varifocal_gamma: see VFNet.
        *_weight: the factor of each loss.
    """
    cells = cells or cell_anchors([(size,) for size in anchor_sizes], (1.0,))
    if head is None:
        strides = [FINEST_STRIDE * 2**level for level in range(len(cells))]
        sides = [
            (right - left) / stride
            for ((left, _, right, _),), stride in zip(cells, strides, strict=True)
        ]
        head = vfnet_head(backbone.out_channels, num_classes, len(cells), sides)
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "head": head,
        "cells": cells,
        "assigner_topk": assigner_topk,
        "score_thresh": score_thresh,
        "nms_thresh": nms_thresh,
        "detections_per_img": detections_per_img,
        "topk_candidates": topk_candidates,
        "varifocal_alpha": varifocal_alpha,
        "varifocal_gamma": varifocal_gamma,
        "loss_weights": {
            "classification": classification_weight,
            "bbox_regression": bbox_regression_weight,
            "bbox_refinement": bbox_refinement_weight,
        },
    }


class VFNet(Detector):
    """A one-stage detector without anchors; its scores are IoUs.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps of each level, finest first: a list, a dict or one
            tensor.
        head: maps -> logits, distances and refined distances.
        cells: one square for each level; `assign_atss` compares it with the boxes, and its side is
            the unit of the distances.
        assigner_topk: how many candidates a box has on each level; see `assign_atss`.
        score_thresh: a detection's score is above this.
        nms_thresh: a detection suppresses detections of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image.
        topk_candidates: maximum number of (location, class) pairs of each level that enter NMS.
        varifocal_alpha, varifocal_gamma: see `varifocal_loss`.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or a number is below 1.
    """

    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        head: VFNetHead,
        cells: Cells,
        *,
        assigner_topk: int,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        topk_candidates: int,
        varifocal_alpha: float = 0.75,
        varifocal_gamma: float = 2.0,
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
        self.varifocal_alpha = varifocal_alpha
        self.varifocal_gamma = varifocal_gamma

    def class_layers(self) -> dict[str, float]:
        """The last layer of the classification head."""
        return {"head.classification_head.cls_logits": PRIOR_LOGIT}

    def anchor_cells(self) -> Cells:
        """The square of each level."""
        return self.cells

    def outputs(self, batch: Batch) -> Outputs:
        """Logits, distances and refined distances of each level, and the squares."""
        features = feature_maps(run(self.backbone, batch.images))
        squares = pyramid_anchors(batch.images, features, self.cells)
        logits, distances, refined = run(self.head, features)
        return Outputs(logits, distances, refined, squares)

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification, bbox_regression and bbox_refinement.

        Classification is a sum, divided by the number of positives in the batch. The target of a
        positive is the IoU of its refined box. A box loss is a mean over positives, weighted by the
        IoUs of its boxes. Follows mmdetection's VFNetHead.loss_by_feat.
        """
        match, _ = assign_atss(
            outputs.squares,
            [level.shape[1] for level in outputs.logits],
            batch.gt_boxes,
            batch.gt_counts,
            self.assigner_topk,
        )  # (B, A)
        positive = match >= 0
        own = take_rows(batch.gt_boxes, match)  # (B, A, 4)
        first, _ = _box_loss(outputs.distances, outputs.squares, own, positive)
        refined, ious = _box_loss(outputs.refined, outputs.squares, own, positive)
        logits = widened(torch.cat(outputs.logits, dim=1))
        labels = take_rows(batch.gt_labels, match)
        classification = varifocal_loss(
            logits,
            label_targets(labels, ious.to(logits.dtype), self.num_classes),
            self.varifocal_alpha,
            self.varifocal_gamma,
        )
        return {
            "classification": classification.sum() / positive.sum().clamp(min=1),
            "bbox_regression": first,
            "bbox_refinement": refined,
        }

    @torch.no_grad()
    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """Follows mmdetection's BaseDenseHead.predict_by_feat."""
        levels = zip(
            outputs.logits,
            outputs.refined,
            outputs.squares.split([level.shape[1] for level in outputs.logits]),
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
        """Each location's refined box, and its score of each class."""
        boxes = decode_distances(torch.cat(outputs.refined, dim=1), outputs.squares)
        scores = widened(torch.cat(outputs.logits, dim=1)).sigmoid()
        return Candidates(clipped(boxes, batch.sizes), scores)

    def suppression(self) -> dict[str, Any]:
        """The model's numbers; every class of a box is a candidate."""
        return suppression_numbers(self.score_thresh, self.nms_thresh, self.detections_per_img)

    def _candidates(
        self, logits: Tensor, refined: Tensor, squares: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of location and class of a level: scores (B, K), boxes, labels."""
        scores, row, labels = best_pairs(widened(logits).sigmoid(), self.topk_candidates)
        return scores, decode_distances(take_rows(refined, row), squares[row]), labels


def _box_loss(
    distances: list[Tensor], squares: Tensor, gt_boxes: Tensor, positive: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of 1 - GIoU, weighted by the IoUs; and the IoUs (B, A), 0 outside `positive`.

    Args:
        distances: (B, A_l, 4) of each level.
        squares: (A, 4) xyxy.
        gt_boxes: (B, A, 4) xyxy, the box that is assigned to each location.
        positive: (B, A) bool.
    """
    boxes = decode_distances(torch.cat(distances, dim=1), squares)
    ious = row_ious(boxes.detach(), gt_boxes).clamp(min=LEAST_IOU).where(positive, 0.0)
    losses = masked_iou_loss("giou", boxes, gt_boxes, positive) * ious
    return losses.sum() / ious.sum().clamp(min=1), ious


def vfnet(
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
) -> VFNet:
    """A VFNet with a timm backbone and a feature pyramid of levels 3 to 7.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid and the head.
        options: keyword arguments of `vfnet_parts`, such as min_size and max_size.
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
    return channels_last(VFNet(**vfnet_parts(pyramid, num_classes, **options)))
