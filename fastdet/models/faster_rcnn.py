# SPDX-License-Identifier: BSD-3-Clause
"""Faster R-CNN: the first stage proposes boxes, the second stage classifies and refines them.

Definitions, defaults, loss names and parameter names are torchvision's
(models/detection/faster_rcnn.py). Papers: https://arxiv.org/abs/1506.01497 and
https://arxiv.org/abs/1612.03144.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastdet.models.anchors import Cells, cell_anchors
from fastdet.models.backbones import feature_maps, fixed_image_size, level_scales, timm_pyramid
from fastdet.models.batch import Batch
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.border import IMAGE_MEAN, IMAGE_STD, Border
from fastdet.models.deprecation import batch_norm_from_frozen, or_from_options
from fastdet.models.detector import Detector, channels_last
from fastdet.models.necks import LastLevelMaxPool, Neck
from fastdet.models.roi_heads import (
    FastRCNNPredictor,
    MaskBranch,
    RoIHeads,
    RoIPooling,
    TwoMLPHead,
)
from fastdet.models.rpn import RegionProposalNetwork, RPNHead
from fastdet.models.running import run
from fastdet.ops.detections import Detections


def faster_rcnn_parts(
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
    mask_branch: Callable[[], MaskBranch] | None = None,
    loss_objectness_weight: float = 1.0,
    loss_rpn_box_reg_weight: float = 1.0,
    loss_classifier_weight: float = 1.0,
    loss_box_reg_weight: float = 1.0,
) -> dict[str, Any]:
    """Builds FasterRCNN's arguments from options with torchvision's names and defaults.

    Args:
        backbone: images -> levels, such as BackboneWithFPN with LastLevelMaxPool or a backbone of
            torchvision. If it has no attribute `strides`, give box_scales. If it has no attribute
            `out_channels`, give rpn_head, box_head and box_predictor.
        num_classes: number of classes with background, which is class 0.
        min_size, max_size, size_divisor, fixed_size, image_mean, image_std: see Border.
        anchor_sizes: for each level, the square root of the anchors' area in pixels.
        cells: the anchors of a location at each level, instead of anchor_sizes.
        rpn_head: replaces the RPNHead.
        rpn_*: see RegionProposalNetwork; *_train is for training mode, *_test for eval mode.
        box_scales: feature pixels per image pixel of the levels to pool from, by level index. None:
            all levels for which the backbone has a stride.
        box_output_size, box_sampling_ratio: see RoIPooling.
        box_canonical_scale, box_canonical_level: see RoIPooling.
        box_head, box_predictor: replace the TwoMLPHead and the FastRCNNPredictor.
        representation_size: number of output features of the TwoMLPHead.
        box_*, bbox_reg_weights: see RoIHeads.
        mask_branch: a function that builds the mask heads; it is called after all others are built.
        loss_*_weight: the factor of each loss.
    """
    border = Border(min_size, max_size, size_divisor, fixed_size, image_mean, image_std)
    cells = cells or cell_anchors([(size,) for size in anchor_sizes])
    if rpn_head is None:
        rpn_head = RPNHead(backbone.out_channels, len(cells[0]))
    rpn = RegionProposalNetwork(
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
    roi_heads = RoIHeads(
        box_head,
        box_predictor,
        RoIPooling(
            box_scales or level_scales(backbone),
            box_output_size,
            box_sampling_ratio,
            box_canonical_scale,
            box_canonical_level,
        ),
        num_classes,
        fg_iou_thresh=box_fg_iou_thresh,
        bg_iou_thresh=box_bg_iou_thresh,
        batch_size_per_image=box_batch_size_per_image,
        positive_fraction=box_positive_fraction,
        bbox_reg_weights=bbox_reg_weights,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
        masks=None if mask_branch is None else mask_branch(),
    )
    loss_weights = {
        "loss_classifier": loss_classifier_weight,
        "loss_box_reg": loss_box_reg_weight,
        "loss_objectness": loss_objectness_weight,
        "loss_rpn_box_reg": loss_rpn_box_reg_weight,
    }
    return {
        "border": border,
        "backbone": backbone,
        "rpn": rpn,
        "roi_heads": roi_heads,
        "loss_weights": loss_weights,
    }


class FirstStage(NamedTuple):
    """The outputs of the first stage, for the second stage and the losses."""

    features: list[Tensor]  # L x (B, C, H_l, W_l)
    objectness: list[Tensor]  # L x (B, A_l)
    deltas: list[Tensor]  # L x (B, A_l, 4)
    anchors: Tensor  # (A, 4)
    proposals: Tensor  # (B, P, 4)
    counts: Tensor  # (B,)
    scores: Tensor  # (B, P), the probability of an object in each proposal
    levels: Tensor  # (B, P) int64, the level of the pyramid that each proposal comes from


class FasterRCNN(Detector):
    """A two-stage detector: an RPN proposes boxes, RoI heads classify and refine them.

    Args:
        border: how images are resized, normalised and padded.
        backbone: images (B, C, H, W) -> maps of each level, finest first: a list, a dict or one
            tensor.
        rpn: the first stage.
        roi_heads: the second stage: RoIHeads, or a module with the same num_classes, learns_masks,
            class_layers, losses and detect.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.
        mask_threshold: see Detector.

    Raises:
        ValueError: num_classes is below 2.
    """

    @or_from_options(faster_rcnn_parts)
    def __init__(
        self,
        border: Border,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: Any,
        *,
        loss_weights: Mapping[str, float] | None = None,
        mask_threshold: float | None = 0.5,
    ) -> None:
        super().__init__(
            border,
            roi_heads.num_classes,
            loss_weights=loss_weights,
            mask_threshold=mask_threshold,
        )
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    @property
    def learns_masks(self) -> bool:
        """Whether the RoI heads learn masks."""
        return self.roi_heads.learns_masks

    @property
    def proposes(self) -> bool:
        """True: the RPN is a first stage."""
        return True

    def class_layers(self) -> dict[str, float]:
        """The class layers of the RoI heads."""
        return {f"roi_heads.{name}": bias for name, bias in self.roi_heads.class_layers().items()}

    def anchor_cells(self) -> Cells:
        """The anchors of the RPN."""
        return self.rpn.cells

    def outputs(self, batch: Batch) -> FirstStage:
        """Feature maps and proposals; the number of proposals depends on the mode."""
        features = feature_maps(run(self.backbone, batch.images))
        objectness, deltas, anchors = self.rpn(batch.images, features)
        found = self.rpn.proposals(objectness, deltas, anchors, batch.sizes)
        return FirstStage(
            features,
            objectness,
            deltas,
            anchors,
            found.boxes,
            found.counts,
            found.scores,
            found.labels,
        )

    def proposals_of(self, outputs: FirstStage, batch: Batch) -> Detections:
        """The proposals of the RPN; the labels are the levels."""
        return Detections(outputs.proposals, outputs.scores, outputs.levels, outputs.counts)

    def losses_of(self, outputs: FirstStage, batch: Batch) -> dict[str, Tensor]:
        """The losses of the RoI heads, loss_objectness and loss_rpn_box_reg."""
        heads = self.roi_heads.losses(outputs.features, outputs.proposals, outputs.counts, batch)
        rpn = self.rpn.losses(outputs.objectness, outputs.deltas, outputs.anchors, batch)
        return heads | rpn

    def detections_of(self, outputs: FirstStage, batch: Batch) -> Detections:
        """The detections of the RoI heads."""
        return self.roi_heads.detect(
            outputs.features, outputs.proposals, outputs.counts, batch.sizes
        )


@batch_norm_from_frozen
def faster_rcnn(
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
) -> FasterRCNN:
    """A Faster R-CNN with a timm backbone and a feature pyramid.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid and the RPN.
        options: keyword arguments of `faster_rcnn_parts`, such as min_size and max_size.
    """
    pyramid = timm_pyramid(
        backbone,
        lambda _: LastLevelMaxPool(),
        neck=neck,
        fpn_channels=fpn_channels,
        pretrained_backbone=pretrained_backbone,
        backbone_weights=backbone_weights,
        trainable_backbone_layers=trainable_backbone_layers,
        batch_norm=batch_norm,
        image_size=fixed_image_size(**options),
    )
    return channels_last(FasterRCNN(**faster_rcnn_parts(pyramid, num_classes, **options)))
