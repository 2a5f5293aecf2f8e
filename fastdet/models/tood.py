# SPDX-License-Identifier: BSD-3-Clause
"""TOOD: classes and boxes are predicted together, and learn where both are good.

Paper: https://arxiv.org/abs/2108.07755. Definitions and defaults are mmdetection's (TOODHead
without anchors, and its configuration tood_r50_fpn_1x_coco); parameter names are those of FCOS
where there is one. One tower computes features for both tasks, and each task weighs its layers. A
probability that fits class and box together then corrects the scores, and learned offsets move each
side of a box to a prediction nearby. `assign_task_aligned` chooses the positives from score and
overlap. As in FCOS the logits have a column for class 0, background, which is never a target.
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
    best_pairs,
    class_conv,
    clipped,
    decode_distances,
    group_norm,
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
    quality_focal_loss,
    widened,
)
from fastdet.models.necks import LastLevelP6P7, Neck
from fastdet.models.running import run
from fastdet.ops import assign_task_aligned, deform_conv2d
from fastdet.ops.detections import Candidates, Detections
from fastdet.ops.padded_rows import take_rows


class Maps(NamedTuple):
    """What the head returns for a level."""

    logits: Tensor  # (B, C, H, W)
    alignment: Tensor  # (B, 1, H, W), logits of the probability that corrects all scores
    distances: Tensor  # (B, 4, H, W) to left, top, right, bottom, in strides
    offsets: Tensor  # (B, 8, H, W), y before x for each side of the box, in pixels of the map


class Outputs(NamedTuple):
    """Scores and boxes for each location, level by level."""

    log_scores: list[Tensor]  # L x (B, A_l, C), natural logarithms
    boxes: list[Tensor]  # L x (B, A_l, 4) xyxy
    squares: Tensor  # (A, 4)


class TaskFeatures(nn.Module):
    """The features of one task: the tower's layers, weighed by attention, then a 1x1 convolution.

    Args:
        channels: of each layer of the tower.
        layers: number of layers of the tower.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        hidden = max(channels * layers // 8, 1)
        self.attention = nn.Sequential(
            _point_conv(channels * layers, hidden, std=0.001),
            nn.ReLU(),
            _point_conv(hidden, layers, std=0.001),
            nn.Sigmoid(),
        )
        self.reduction = nn.Sequential(
            _point_conv(channels * layers, channels, std=0.01), group_norm(channels), nn.ReLU()
        )
        self.channels = channels

    def forward(self, layers: Tensor) -> Tensor:
        """(B, layers * channels, H, W) -> (B, channels, H, W)."""
        weights = self.attention(layers.mean((2, 3), keepdim=True))  # (B, layers, 1, 1)
        return self.reduction(layers * weights.repeat_interleave(self.channels, dim=1))


class TOODClassificationHead(nn.Module):
    """A logit for each location and class, and one for each location that corrects all classes.

    Args:
        task: the features of this task.
        cls_logits: the last layer of the classes; its output channels are the classes.
        alignment: the tower's layers -> one channel.
        num_classes: number of classes with background, which is class 0.
    """

    def __init__(
        self, task: nn.Module, cls_logits: nn.Module, alignment: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.task = task
        self.cls_logits = cls_logits
        self.alignment = alignment

    def forward(self, layers: Tensor) -> tuple[Tensor, Tensor]:
        """(B, layers * channels, H, W) -> logits (B, C, H, W) and (B, 1, H, W)."""
        return self.cls_logits(self.task(layers)), self.alignment(layers)


class TOODRegressionHead(nn.Module):
    """The distances to the four sides of the box, and where a better value of each is read.

    Args:
        task: the features of this task.
        bbox_reg: the last layer of the distances, with 4 output channels.
        offsets: the tower's layers -> 8 channels.
        levels: number of levels of the pyramid.
    """

    def __init__(
        self, task: nn.Module, bbox_reg: nn.Module, offsets: nn.Module, levels: int
    ) -> None:
        super().__init__()
        self.task = task
        self.bbox_reg = bbox_reg
        self.offsets = offsets
        self.scale = nn.Parameter(torch.ones(levels))

    def forward(self, layers: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """(B, layers * channels, H, W) -> distances (B, 4, H, W) and offsets (B, 8, H, W)."""
        distances = widened(self.bbox_reg(self.task(layers))).exp() * self.scale[level]
        return distances, self.offsets(layers)


class TOODHead(nn.Module):
    """A tower whose layers both tasks read, and the two tasks.

    Args:
        tower: layers that run one after the other, from the maps of the pyramid.
        classification_head: reads all layers.
        regression_head: reads all layers.
    """

    def __init__(
        self,
        tower: nn.ModuleList,
        classification_head: TOODClassificationHead,
        regression_head: TOODRegressionHead,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.classification_head = classification_head
        self.regression_head = regression_head

    @property
    def num_classes(self) -> int:
        """Number of classes with background."""
        return self.classification_head.num_classes

    def forward(self, features: Sequence[Tensor]) -> list[Maps]:
        """Pyramid -> the maps of each level."""
        found = []
        for level, feature in enumerate(features):
            layers = []
            for layer in self.tower:
                feature = layer(feature)
                layers.append(feature)
            together = torch.cat(layers, dim=1)
            of_classes = self.classification_head(together)
            found.append(Maps(*of_classes, *self.regression_head(together, level)))
        return found


def tood_head(in_channels: int, num_classes: int, levels: int = 5, layers: int = 6) -> TOODHead:
    """The head of the paper: a tower of six convolutions, each with GroupNorm and ReLU."""
    tower = nn.ModuleList(norm_tower(in_channels, 1) for _ in range(layers))
    inner = max(in_channels // 4, 1)

    def correction(outputs: int, std: float, bias: float) -> nn.Sequential:
        last = head_conv(inner, outputs, bias=bias)
        nn.init.normal_(last.weight, std=std)
        return nn.Sequential(_point_conv(in_channels * layers, inner, std=std), nn.ReLU(), last)

    return TOODHead(
        tower,
        TOODClassificationHead(
            TaskFeatures(in_channels, layers),
            class_conv(in_channels, num_classes),
            correction(1, std=0.01, bias=PRIOR_LOGIT),
            num_classes,
        ),
        TOODRegressionHead(
            TaskFeatures(in_channels, layers),
            head_conv(in_channels, 4),
            correction(8, std=0.001, bias=0.0),
            levels,
        ),
    )


def _point_conv(in_channels: int, out_channels: int, *, std: float) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def tood_parts(
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
    head: TOODHead | None = None,
    assigner_topk: int = 13,
    assigner_alpha: float = 1.0,
    assigner_beta: float = 6.0,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.6,
    detections_per_img: int = 100,
    topk_candidates: int = 1000,
    classification_weight: float = 1.0,
    bbox_regression_weight: float = 2.0,
) -> dict[str, Any]:
    """Builds TOOD's arguments from options; the defaults are mmdetection's.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with LastLevelP6P7. If it has no
            attribute `out_channels`, give head.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        anchor_sizes: for each level, the side of its square in pixels: the stride of the level.
        cells: one square for each level, instead of anchor_sizes.
        head: replaces the head that `tood_head` builds.
        assigner_topk, assigner_alpha, assigner_beta, score_thresh, nms_thresh: see TOOD.
        detections_per_img, topk_candidates: see TOOD.
        *_weight: the factor of each loss.
    """
    cells = cells or cell_anchors([(size,) for size in anchor_sizes], (1.0,))
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "head": head or tood_head(backbone.out_channels, num_classes, len(cells)),
        "cells": cells,
        "assigner_topk": assigner_topk,
        "assigner_alpha": assigner_alpha,
        "assigner_beta": assigner_beta,
        "score_thresh": score_thresh,
        "nms_thresh": nms_thresh,
        "detections_per_img": detections_per_img,
        "topk_candidates": topk_candidates,
        "loss_weights": {
            "classification": classification_weight,
            "bbox_regression": bbox_regression_weight,
        },
    }


class TOOD(Detector):
    """A one-stage detector without anchors that aligns its two tasks.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps of each level, finest first: a list, a dict or one
            tensor.
        head: maps -> logits, distances and their corrections.
        cells: one square for each level; the side is the stride of the level.
        assigner_topk: how many locations a box picks; see `assign_task_aligned`.
        assigner_alpha, assigner_beta: exponents of score and overlap; see `assign_task_aligned`.
        score_thresh: a detection's score is above this. The score is
            sqrt(probability of the class * probability of the alignment).
        nms_thresh: a detection suppresses detections of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image.
        topk_candidates: maximum number of (location, class) pairs of each level that enter NMS.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or a number is below 1.
    """

    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        head: TOODHead,
        cells: Cells,
        *,
        assigner_topk: int,
        assigner_alpha: float,
        assigner_beta: float,
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
        self.assigner_alpha = assigner_alpha
        self.assigner_beta = assigner_beta
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
        """Scores and boxes of each level, and the squares."""
        features = feature_maps(run(self.backbone, batch.images))
        squares = pyramid_anchors(batch.images, features, self.cells)
        maps = run(self.head, features)
        own = squares.split([x.shape[2] * x.shape[3] for x in features])
        boxes = [_aligned_boxes(level, square) for level, square in zip(maps, own, strict=True)]
        return Outputs([_log_scores(level) for level in maps], boxes, squares)

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification and bbox_regression.

        The target of a positive is the metric of `assign_task_aligned`. Both losses are divided by
        the sum of the metrics in the batch, and the box loss is weighted by them. Follows
        mmdetection's TOODHead.loss_by_feat after its first epochs.
        """
        log_scores = torch.cat(outputs.log_scores, dim=1)
        boxes = torch.cat(outputs.boxes, dim=1)
        match, metrics = assign_task_aligned(
            log_scores.detach().exp(),
            boxes,
            0.5 * (outputs.squares[:, :2] + outputs.squares[:, 2:]),
            batch.gt_labels,
            batch.gt_boxes,
            batch.gt_counts,
            self.assigner_topk,
            self.assigner_alpha,
            self.assigner_beta,
        )  # (B, A)
        labels = take_rows(batch.gt_labels, match)
        targets = label_targets(labels, metrics.to(log_scores.dtype), self.num_classes)
        own = take_rows(batch.gt_boxes, match)
        giou = masked_iou_loss("giou", boxes, own, match >= 0) * metrics
        total = metrics.sum().clamp(min=1)
        return {
            "classification": quality_focal_loss(log_scores, targets).sum() / total,
            "bbox_regression": giou.sum() / total,
        }

    @torch.no_grad()
    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """Follows mmdetection's BaseDenseHead.predict_by_feat."""
        levels = zip(outputs.log_scores, outputs.boxes, strict=True)
        return suppressed(
            [self._candidates(*level) for level in levels],
            batch.sizes,
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_img,
        )

    def candidates_of(self, outputs: Outputs, batch: Batch) -> Candidates:
        """Each location's box, and its score of each class."""
        boxes = torch.cat(outputs.boxes, dim=1)
        return Candidates(clipped(boxes, batch.sizes), torch.cat(outputs.log_scores, dim=1).exp())

    def suppression(self) -> dict[str, Any]:
        """The model's numbers; every class of a box is a candidate."""
        return suppression_numbers(self.score_thresh, self.nms_thresh, self.detections_per_img)

    def _candidates(self, log_scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of location and class of a level: scores (B, K), boxes, labels."""
        scores, row, labels = best_pairs(log_scores.exp(), self.topk_candidates)
        return scores, take_rows(boxes, row), labels


def _log_scores(maps: Maps) -> Tensor:
    """The logarithm (B, A_l, C) of sqrt(probability of the class * probability of the alignment).

    Its gradient is finite where that of the square root is not.
    """
    classes = maps.logits.shape[1]
    # As rows, because torch's fake log_sigmoid has the wrong strides for channels_last maps.
    logits, alignment = (
        widened(in_anchor_order([x], columns)[0])
        for x, columns in ((maps.logits, classes), (maps.alignment, 1))
    )
    return 0.5 * (F.logsigmoid(logits) + F.logsigmoid(alignment))


def _aligned_boxes(maps: Maps, squares: Tensor) -> Tensor:
    """Boxes (B, A_l, 4) xyxy, each side read where its offset points.

    Sides outside the map are 0, as in mmdetection. A box without a side stays where it was.
    """
    rows = in_anchor_order([maps.distances], 4)[0]
    boxes = decode_distances(rows, squares).transpose(1, 2).unflatten(2, maps.distances.shape[2:])
    one_each = boxes.new_ones((4, 1, 1, 1))
    moved = deform_conv2d(boxes, maps.offsets.to(boxes.dtype), one_each)
    inverted = (moved[:, :2] > moved[:, 2:]).any(dim=1, keepdim=True)
    return in_anchor_order([boxes.where(inverted, moved)], 4)[0]


def tood(
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
) -> TOOD:
    """A TOOD with a timm backbone and a feature pyramid of levels 3 to 7.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid and the head.
        options: keyword arguments of `tood_parts`, such as min_size and max_size.
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
    return channels_last(TOOD(**tood_parts(pyramid, num_classes, **options)))
