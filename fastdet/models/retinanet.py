# SPDX-License-Identifier: BSD-3-Clause
"""RetinaNet: a one-stage detector; a class and a box for every anchor, trained with focal loss.

Definitions, defaults, loss names and parameter names are torchvision's
(models/detection/retinanet.py). As there, the logits have a column for class 0, background, which
is never a target. Paper: https://arxiv.org/abs/1708.02002. The outputs of the head stay separate,
one tensor for each level. Detection reads them in place; only the losses concatenate the levels.
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
from fastdet.models.dense_heads import ClassificationHead, suppression_numbers
from fastdet.models.deprecation import batch_norm_from_frozen, or_from_options
from fastdet.models.detector import Detector, channels_last
from fastdet.models.losses import BOX_LOSSES, PRIOR_LOGIT, anchor_box_loss, widened
from fastdet.models.necks import LastLevelP6P7, Neck
from fastdet.models.running import run
from fastdet.ops import decode_boxes, match_anchors, retinanet_detections, sigmoid_focal_loss
from fastdet.ops.detections import Candidates, Detections
from fastdet.ops.padded_rows import take_rows


class Outputs(NamedTuple):
    """The head's outputs for each anchor, level by level."""

    logits: list[Tensor]  # L x (B, A_l, C)
    deltas: list[Tensor]  # L x (B, A_l, 4)
    anchors: Tensor  # (A, 4)


def _tower(channels: int) -> nn.Sequential:
    """Four 3x3 convolutions with ReLU.

    The initialisation is He's. torchvision uses a standard deviation of 0.01 instead: with 64
    channels this makes the signal a thousand times smaller, and a training from scratch needs
    hundreds of steps before it separates the classes.
    """
    tower = nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True))
            for _ in range(4)
        )
    )
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
    return tower


def _init_conv(conv: nn.Conv2d, bias: float = 0.0) -> nn.Conv2d:
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    return conv


RetinaNetClassificationHead = ClassificationHead


class RetinaNetRegressionHead(nn.Module):
    """Box deltas for each anchor; the weights are shared between the levels.

    Args:
        conv: the layers before the last layer.
        bbox_reg: the last layer; its output channels are (cell, delta).
    """

    def __init__(self, conv: nn.Module, bbox_reg: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.bbox_reg = bbox_reg

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid -> (B, A_l, 4) for each level."""
        return in_anchor_order([self.bbox_reg(self.conv(x)) for x in features], 4)


class RetinaNetHead(nn.Module):
    """A classification head and a regression head, without shared layers."""

    def __init__(
        self,
        classification_head: RetinaNetClassificationHead,
        regression_head: RetinaNetRegressionHead,
    ) -> None:
        super().__init__()
        self.classification_head = classification_head
        self.regression_head = regression_head

    @property
    def num_classes(self) -> int:
        """Number of classes with background."""
        return self.classification_head.num_classes

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid -> logits (B, A_l, num_classes) and deltas (B, A_l, 4) of each level."""
        return self.classification_head(features), self.regression_head(features)


def retinanet_head(in_channels: int, num_anchors: int, num_classes: int) -> RetinaNetHead:
    """The head of the paper: two towers of four convolutions."""
    cls_logits = nn.Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
    bbox_reg = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
    return RetinaNetHead(
        RetinaNetClassificationHead(
            _tower(in_channels),
            _init_conv(cls_logits, bias=PRIOR_LOGIT),
            num_classes,
        ),
        RetinaNetRegressionHead(_tower(in_channels), _init_conv(bbox_reg)),
    )


def retinanet_parts(
    backbone: Any,
    num_classes: int,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    cells: Cells | None = None,
    head: RetinaNetHead | None = None,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    detections_per_img: int = 300,
    fg_iou_thresh: float = 0.5,
    bg_iou_thresh: float = 0.4,
    low_quality_matches: bool = True,
    box_loss: str = "l1",
    topk_candidates: int = 1000,
    classification_weight: float = 1.0,
    bbox_regression_weight: float = 1.0,
) -> dict[str, Any]:
    """Builds RetinaNet's arguments from options with torchvision's names and defaults.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with LastLevelP6P7 or a backbone of
            torchvision. If it has no attribute `out_channels`, give head.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        anchor_sizes: for each level, the square root of the smallest anchor's area in pixels. Each
            level has two more sizes, 2^(1/3) and 2^(2/3) times as large (rounded down).
        cells: the anchors of a location at each level, instead of anchor_sizes.
        head: replaces the head that `retinanet_head` builds.
        score_thresh, nms_thresh, detections_per_img, topk_candidates: see RetinaNet.
        fg_iou_thresh, bg_iou_thresh, low_quality_matches, box_loss: see RetinaNet.
        *_weight: the factor of each loss.
    """
    cells = cells or cell_anchors(
        [(x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in anchor_sizes]
    )
    if head is None:
        head = retinanet_head(backbone.out_channels, len(cells[0]), num_classes)
    return {
        "border": Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std),
        "backbone": backbone,
        "head": head,
        "cells": cells,
        "score_thresh": score_thresh,
        "nms_thresh": nms_thresh,
        "detections_per_img": detections_per_img,
        "fg_iou_thresh": fg_iou_thresh,
        "bg_iou_thresh": bg_iou_thresh,
        "low_quality_matches": low_quality_matches,
        "box_loss": box_loss,
        "topk_candidates": topk_candidates,
        "loss_weights": {
            "classification": classification_weight,
            "bbox_regression": bbox_regression_weight,
        },
    }


class RetinaNet(Detector):
    """A one-stage detector with anchors.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps of each level, finest first: a list, a dict or one
            tensor.
        head: maps -> logits and deltas.
        cells: the anchors of a location at each level; their number must fit the head. See
            `cell_anchors`.
        score_thresh: a detection's probability is above this.
        nms_thresh: a detection suppresses detections of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image.
        topk_candidates: maximum number of (anchor, class) pairs of each level that enter NMS.
        fg_iou_thresh: an anchor is foreground if its best IoU is >= this.
        bg_iou_thresh: an anchor is background if its best IoU is below this.
        low_quality_matches: whether the anchors that overlap a box most are foreground at any IoU;
            see "anchor_best" in `match_anchors`.
        box_loss: "l1" or "smooth_l1" of the deltas; "giou", "diou" or "ciou" of the boxes.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.

    Raises:
        ValueError: num_classes is below 2, or unknown box_loss.
    """

    @or_from_options(retinanet_parts)
    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        head: RetinaNetHead,
        cells: Cells,
        *,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        topk_candidates: int,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        low_quality_matches: bool = True,
        box_loss: str = "l1",
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(border, head.num_classes, loss_weights=loss_weights)
        check_counts(topk_candidates=topk_candidates, detections_per_img=detections_per_img)
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss: expected one of {BOX_LOSSES}, got {box_loss!r}")
        self.backbone = backbone
        self.head = head
        self.cells = cells
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.low_quality = "anchor_best" if low_quality_matches else "none"
        self.box_loss = box_loss
        self.topk_candidates = topk_candidates

    def class_layers(self) -> dict[str, float]:
        """The last layer of the classification head."""
        return {"head.classification_head.cls_logits": PRIOR_LOGIT}

    def anchor_cells(self) -> Cells:
        """The anchors of a location at each level."""
        return self.cells

    def outputs(self, batch: Batch) -> Outputs:
        """Logits and deltas of each level, and the anchors."""
        features = feature_maps(run(self.backbone, batch.images))
        logits, deltas = run(self.head, features)
        return Outputs(logits, deltas, pyramid_anchors(batch.images, features, self.cells))

    def losses_of(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Losses named classification and bbox_regression.

        For each image, the sum over anchors is divided by the number of positives; then the mean
        over images is taken. Follows torchvision's compute_loss of the two heads.
        """
        match, _ = match_anchors(
            outputs.anchors,
            batch.gt_boxes,
            batch.gt_counts,
            self.fg_iou_thresh,
            self.bg_iou_thresh,
            low_quality=self.low_quality,
        )  # (B, A)
        positive = match >= 0
        counts = positive.sum(dim=1).clamp(min=1)  # (B,)
        # Negative matches have the same meaning in the focal loss: -1 background, -2 ignored.
        labels = take_rows(batch.gt_labels, match).where(positive, match)
        focal = sigmoid_focal_loss(torch.cat(outputs.logits, dim=1), labels)  # (B, A, C)
        boxes = anchor_box_loss(
            self.box_loss,
            widened(torch.cat(outputs.deltas, dim=1)),
            outputs.anchors,
            take_rows(batch.gt_boxes, match),
            positive,
        )  # (B, A)
        return {
            "classification": (focal.sum(dim=(1, 2)) / counts).mean(),
            "bbox_regression": (boxes.sum(dim=1) / counts).mean(),
        }

    def detections_of(self, outputs: Outputs, batch: Batch) -> Detections:
        """Follows torchvision's RetinaNet.postprocess_detections."""
        found = retinanet_detections(
            outputs.logits,
            outputs.deltas,
            outputs.anchors,
            batch.sizes,
            self.score_thresh,
            self.topk_candidates,
            self.nms_thresh,
            self.detections_per_img,
        )
        return Detections(*found)

    def candidates_of(self, outputs: Outputs, batch: Batch) -> Candidates:
        """Each anchor's box, and its probability of each class."""
        deltas = widened(torch.cat(outputs.deltas, dim=1))
        scores = widened(torch.cat(outputs.logits, dim=1)).sigmoid()
        return Candidates(decode_boxes(deltas, outputs.anchors, sizes=batch.sizes), scores)

    def suppression(self) -> dict[str, Any]:
        """The model's numbers; every class of a box is a candidate."""
        return suppression_numbers(self.score_thresh, self.nms_thresh, self.detections_per_img)


@batch_norm_from_frozen
def retinanet(
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
) -> RetinaNet:
    """A RetinaNet with a timm backbone and a feature pyramid of levels 3 to 7.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid and the head.
        options: keyword arguments of `retinanet_parts`, such as min_size and max_size.
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
    return channels_last(RetinaNet(**retinanet_parts(pyramid, num_classes, **options)))
