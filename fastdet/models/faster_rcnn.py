# SPDX-License-Identifier: BSD-3-Clause
"""Faster R-CNN with a feature pyramid: proposals first, then their classes and exact boxes.

Definitions, defaults, loss names and parameter names are torchvision's
(models/detection/faster_rcnn.py). Papers: https://arxiv.org/abs/1506.01497 and
https://arxiv.org/abs/1612.03144.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastdet.engine.fused import run_fused
from fastdet.models.anchors import Cells, cell_anchors
from fastdet.models.backbones import BackboneWithFPN, feature_maps, timm_body
from fastdet.models.batch import IMAGE_MEAN, IMAGE_STD, Batch, Detections
from fastdet.models.detector import Detector, channels_last
from fastdet.models.necks import FeaturePyramidNetwork, LastLevelMaxPool
from fastdet.models.roi_heads import FastRCNNPredictor, RoIHeads, RoIPooling, Sample, TwoMLPHead
from fastdet.models.rpn import RegionProposalNetwork, RPNHead


class FirstStage(NamedTuple):
    """What the second stage and the losses take from the first."""

    features: list[Tensor]  # L x (B, C, H_l, W_l)
    objectness: list[Tensor]  # L x (B, A_l)
    deltas: list[Tensor]  # L x (B, A_l, 4)
    anchors: Tensor  # (A, 4)
    proposals: Tensor  # (B, P, 4)
    counts: Tensor  # (B,)


class FasterRCNN(Detector):
    """Faster R-CNN on a backbone that yields a feature pyramid.

    Args:
        backbone: images -> pyramid, as BackboneWithFPN with LastLevelMaxPool, or any module of
            torchvision's kind; without `strides` it needs box_scales, without `out_channels` the
            heads.
        num_classes: with background, which is 0.
        anchor_sizes: square root of the anchors' area in pixels, for each level.
        cells: anchors of each level, instead of anchor_sizes.
        rpn_head: instead of an RPNHead.
        box_scales: feature pixels per image pixel of the levels that are pooled, by their indices;
            None: those of the backbone's strides.
        box_head, box_predictor: instead of a TwoMLPHead and a FastRCNNPredictor.
        representation_size: width of the TwoMLPHead.
        loss_*_weight: the factor of each loss.
        others: see Detector, RegionProposalNetwork (rpn_*) and RoIHeads (box_*).
    """

    def __init__(
        self,
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
        rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        box_scales: Mapping[int, float] | None = None,
        box_output_size: tuple[int, int] = (7, 7),
        box_sampling_ratio: int = 2,
        box_canonical_scale: int = 224,
        box_canonical_level: int = 4,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        representation_size: int = 1024,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        loss_objectness_weight: float = 1.0,
        loss_rpn_box_reg_weight: float = 1.0,
        loss_classifier_weight: float = 1.0,
        loss_box_reg_weight: float = 1.0,
    ) -> None:
        super().__init__(
            num_classes,
            min_size=min_size,
            max_size=max_size,
            size_divisor=size_divisor,
            fixed_size=fixed_size,
            image_mean=image_mean,
            image_std=image_std,
            loss_weights={
                "loss_classifier": loss_classifier_weight,
                "loss_box_reg": loss_box_reg_weight,
                "loss_objectness": loss_objectness_weight,
                "loss_rpn_box_reg": loss_rpn_box_reg_weight,
            },
        )
        self.backbone = backbone
        cells = cells or cell_anchors([(size,) for size in anchor_sizes])
        if rpn_head is None:
            rpn_head = RPNHead(backbone.out_channels, len(cells[0]))
        self.rpn = RegionProposalNetwork(
            rpn_head,
            cells,
            fg_iou_thresh=rpn_fg_iou_thresh,
            bg_iou_thresh=rpn_bg_iou_thresh,
            batch_size_per_image=rpn_batch_size_per_image,
            positive_fraction=rpn_positive_fraction,
            pre_nms_top_n=(rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test),
            post_nms_top_n=(rpn_post_nms_top_n_train, rpn_post_nms_top_n_test),
            nms_thresh=rpn_nms_thresh,
            score_thresh=rpn_score_thresh,
        )
        if box_head is None:
            bins = box_output_size[0] * box_output_size[1]
            box_head = TwoMLPHead(backbone.out_channels * bins, representation_size)
        if box_predictor is None:
            box_predictor = FastRCNNPredictor(representation_size, num_classes)
        self.roi_heads = RoIHeads(
            box_head,
            box_predictor,
            RoIPooling(
                box_scales or scales_of(backbone),
                box_output_size,
                box_sampling_ratio,
                box_canonical_scale,
                box_canonical_level,
            ),
            fg_iou_thresh=box_fg_iou_thresh,
            bg_iou_thresh=box_bg_iou_thresh,
            batch_size_per_image=box_batch_size_per_image,
            positive_fraction=box_positive_fraction,
            bbox_reg_weights=bbox_reg_weights,
            score_thresh=box_score_thresh,
            nms_thresh=box_nms_thresh,
            detections_per_img=box_detections_per_img,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """loss_classifier, loss_box_reg, loss_objectness and loss_rpn_box_reg."""
        return self._losses(self._first_stage(batch), batch)

    def detect(self, batch: Batch) -> Detections:
        """Detections in the padded batch's pixels; the ground truth is not read."""
        return self._detect(self._first_stage(batch), batch)

    def losses_and_detections(self, batch: Batch) -> tuple[dict[str, Tensor], Detections]:
        """Both from one run of the first stage, with the mode's number of proposals."""
        first = self._first_stage(batch)
        return self._losses(first, batch), self._detect(first, batch)

    def _first_stage(self, batch: Batch) -> FirstStage:
        features = feature_maps(run_fused(self.backbone, batch.images))
        objectness, deltas, anchors = self.rpn(batch.images, features)
        found = self.rpn.proposals(objectness, deltas, anchors, batch.sizes)
        return FirstStage(features, objectness, deltas, anchors, found.boxes, found.counts)

    def _losses(self, first: FirstStage, batch: Batch) -> dict[str, Tensor]:
        sample = self.roi_heads.sample(first.proposals, first.counts, batch)
        heads = self._head_losses(first.features, sample, batch)
        rpn = self.rpn.losses(first.objectness, first.deltas, first.anchors, batch)
        return self._weighted(heads | rpn)

    def _head_losses(
        self, features: list[Tensor], sample: Sample, batch: Batch
    ) -> dict[str, Tensor]:
        return self.roi_heads.losses(features, sample, batch)

    def _detect(self, first: FirstStage, batch: Batch) -> Detections:
        return self.roi_heads.detect(first.features, first.proposals, first.counts, batch.sizes)


def scales_of(backbone: Any) -> dict[int, float]:
    """Feature pixels per image pixel of a backbone's levels, by their indices."""
    return {level: 1 / stride for level, stride in enumerate(backbone.strides)}


def faster_rcnn(
    backbone: str = "resnet50",
    num_classes: int = 91,
    *,
    pretrained_backbone: bool = False,
    trainable_backbone_layers: int | None = None,
    frozen_batch_norm: bool | None = None,
    fpn_channels: int = 256,
    **numbers: Any,
) -> FasterRCNN:
    """A Faster R-CNN with a timm backbone and a feature pyramid.

    Args:
        backbone: timm's model name.
        num_classes: with background, which is 0.
        pretrained_backbone: timm's weights, downloaded at the first use.
        trainable_backbone_layers: see `timm_body`.
        frozen_batch_norm: see `timm_body`.
        fpn_channels: width of the pyramid and the RPN.
        numbers: FasterRCNN's keyword arguments, min_size and max_size among them.
    """
    body, channels = timm_body(
        backbone,
        pretrained=pretrained_backbone,
        trainable_layers=trainable_backbone_layers,
        frozen_batch_norm=frozen_batch_norm,
    )
    fpn = FeaturePyramidNetwork(channels, fpn_channels, LastLevelMaxPool())
    return channels_last(FasterRCNN(BackboneWithFPN(body, fpn), num_classes, **numbers))
