# SPDX-License-Identifier: BSD-3-Clause
"""Cascade R-CNN: a Faster R-CNN whose second stage is a sequence of stages, each stricter.

Each stage refines the boxes of the stage before it, and learns from boxes that match the ground
truth at a higher IoU. The deltas are the same for all classes. Definitions and defaults are those
of the paper, https://arxiv.org/abs/1712.00726, and of mmdetection: the refined boxes of the sampled
proposals are clipped and go to the next stage without a gradient; each stage adds the ground truth
and samples again; detections have the mean of the probabilities of all stages and the boxes of the
last stage. The loss of a box is Faster R-CNN's here: smooth L1 with beta 1/9.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdet.models.backbones import fixed_image_size, timm_pyramid
from fastdet.models.batch import Batch, rows_in_use
from fastdet.models.batch_norms import BatchNormMode
from fastdet.models.detector import channels_last
from fastdet.models.faster_rcnn import FasterRCNN, faster_rcnn_parts
from fastdet.models.losses import widened
from fastdet.models.mask_rcnn import mask_rcnn_parts
from fastdet.models.necks import LastLevelMaxPool, Neck
from fastdet.models.roi_heads import ClassAgnosticPredictor, MaskBranch, RoIHeads
from fastdet.ops import decode_boxes
from fastdet.ops.box_coding import Weights
from fastdet.ops.detections import Detections
from fastdet.ops.padded_rows import row_mask

# Options of one stage, and what a cascade has instead.
OF_ONE_STAGE = {
    "box_fg_iou_thresh": "stage_iou_thresholds",
    "box_bg_iou_thresh": "stage_iou_thresholds",
    "bbox_reg_weights": "stage_bbox_reg_weights",
    "box_head": "CascadeRoIHeads of your own stages",
    "box_predictor": "CascadeRoIHeads of your own stages",
}


class CascadeRoIHeads(nn.Module):
    """RoI heads in a sequence. The last one may have a MaskBranch, which predicts its masks.

    Args:
        stages: first to last; the score_thresh, nms_thresh and detections_per_img of the last one
            are used, and the other numbers of each one.

    Raises:
        ValueError: no stage; a mask head before the last stage.
    """

    def __init__(self, stages: Sequence[RoIHeads]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        for i, stage in enumerate(stages[:-1]):
            if stage.learns_masks:
                raise ValueError(
                    f"stages: expected a mask head at most in the last of {len(stages)}, got one "
                    f"in stage {i}"
                )
        self.stages = nn.ModuleList(stages)
        self.num_classes = stages[0].num_classes

    @property
    def learns_masks(self) -> bool:
        """Whether the last stage has a MaskBranch."""
        return self._stages()[-1].learns_masks

    def class_layers(self) -> dict[str, float]:
        """The class layers of all stages."""
        return {
            f"stages.{i}.{name}": bias
            for i, stage in enumerate(self._stages())
            for name, bias in stage.class_layers().items()
        }

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """loss_classifier_i and loss_box_reg_i of each stage i, and loss_mask of the last stage.

        Args:
            features: the levels of the pyramid.
            proposals: (B, P, 4) xyxy.
            counts: (B,), number of real proposals of each image.
            batch: the ground truth.
        """
        losses: dict[str, Tensor] = {}
        real = row_mask(counts, proposals.shape[1])
        for i, stage in enumerate(self._stages()):
            # Ground truth that the stage before has added is not refined: it is added again.
            sample, real = stage.sample_among(proposals, real, batch)
            logits, deltas = stage(features, sample.boxes, sample.valid.sum(dim=1))
            of_boxes = stage.box_losses_of(logits, deltas, sample, batch)
            losses |= {f"{name}_{i}": loss for name, loss in of_boxes.items()}
            if stage.learns_masks:
                losses["loss_mask"] = stage.mask_loss(features, sample, batch)
            proposals = _refined(stage, logits, deltas, sample.boxes, batch.sizes)
        return losses

    def detect(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor, sizes: Tensor
    ) -> Detections:
        """The detections of each image, clipped to its size (B, 2), with masks if there are any."""
        boxes = proposals[:, : rows_in_use(counts, proposals.shape[1])]
        *first, last = self._stages()
        log_probabilities = []
        for stage in first:
            logits, deltas = stage(features, boxes, counts)
            log_probabilities.append(widened(logits).log_softmax(dim=2))
            boxes = _refined(stage, logits, deltas, boxes, sizes)
        logits, deltas = last(features, boxes, counts)
        log_probabilities.append(widened(logits).log_softmax(dim=2))
        # The softmax of this logarithm is the mean of the probabilities.
        logits = torch.stack(log_probabilities).logsumexp(dim=0)
        return last.detections_of(features, logits, deltas, boxes, counts, sizes)

    def _stages(self) -> list[Any]:
        return list(self.stages)


@torch.no_grad()
def _refined(
    stage: RoIHeads, logits: Tensor, deltas: Tensor, boxes: Tensor, sizes: Tensor
) -> Tensor:
    """The boxes (B, K, 4) of a stage for the next one, clipped to the images' sizes (B, 2).

    Logits are (B, K, C), deltas (B, K, C, 4). If the classes have different deltas, those of the
    most probable class except background are used.
    """
    label = 1 + logits[..., 1:].argmax(dim=2)
    own = deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
    return decode_boxes(widened(own), boxes, stage.bbox_reg_weights, sizes)


def cascade_rcnn_parts(
    backbone: Any,
    num_classes: int,
    *,
    stage_iou_thresholds: Sequence[float] = (0.5, 0.6, 0.7),
    stage_bbox_reg_weights: Sequence[Weights] = (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    ),
    stage_loss_weights: Sequence[float] = (1.0, 0.5, 0.25),
    representation_size: int = 1024,
    rpn_head: nn.Module | None = None,
    mask_branch: Callable[[], MaskBranch] | None = None,
    loss_classifier_weight: float = 1.0,
    loss_box_reg_weight: float = 1.0,
    **options: Any,
) -> dict[str, Any]:
    """Builds CascadeRCNN's arguments.

    Args:
        backbone, num_classes, rpn_head: see `faster_rcnn_parts`.
        stage_iou_thresholds: of each stage; a box is foreground if its best IoU is >= this, else
            background.
        stage_bbox_reg_weights: of each stage, the factors of the deltas dx, dy, dw, dh.
        stage_loss_weights: of each stage, the factor of its two losses.
        representation_size: number of output features of each stage's TwoMLPHead.
        mask_branch: a function that builds the mask heads of the last stage.
        loss_classifier_weight, loss_box_reg_weight: further factors of these losses of all stages.
        options: the other keyword arguments of `faster_rcnn_parts`.

    Raises:
        TypeError: an option of one stage, such as box_fg_iou_thresh.
        ValueError: the three sequences have different lengths, or none has an element; a number out
            of range.
    """
    for name, instead in OF_ONE_STAGE.items():
        if name in options:
            raise TypeError(f"{name}: a cascade has one for each stage: give {instead}")
    for threshold in stage_iou_thresholds:
        if not 0 < threshold <= 1:
            raise ValueError(f"stage_iou_thresholds: expected numbers in (0, 1], got {threshold}")
    for factors in stage_bbox_reg_weights:
        if not isinstance(factors, Sequence) or len(factors) != 4:
            raise ValueError(
                f"stage_bbox_reg_weights: expected four numbers for each stage, got {factors}"
            )
    numbers = stage_iou_thresholds, stage_bbox_reg_weights, stage_loss_weights
    if len(set(map(len, numbers))) > 1:
        raise ValueError(
            "stage_iou_thresholds, stage_bbox_reg_weights, stage_loss_weights: expected one of "
            f"each for every stage, got {', '.join(str(len(one)) for one in numbers)}"
        )
    parts: dict[str, Any] = {}
    stages, loss_weights = [], {}
    for i, (iou_threshold, bbox_reg_weights, weight) in enumerate(zip(*numbers, strict=True)):
        parts = faster_rcnn_parts(
            backbone,
            num_classes,
            rpn_head=rpn_head,
            box_head=None,
            box_predictor=ClassAgnosticPredictor(representation_size, num_classes),
            representation_size=representation_size,
            box_fg_iou_thresh=iou_threshold,
            box_bg_iou_thresh=iou_threshold,
            bbox_reg_weights=bbox_reg_weights,
            mask_branch=mask_branch if i == len(stage_loss_weights) - 1 else None,
            **options,
        )
        rpn_head = parts["rpn"].head  # one for all stages
        stages.append(parts["roi_heads"])
        loss_weights[f"loss_classifier_{i}"] = weight * loss_classifier_weight
        loss_weights[f"loss_box_reg_{i}"] = weight * loss_box_reg_weight
    heads = CascadeRoIHeads(stages)
    return parts | {"roi_heads": heads, "loss_weights": parts["loss_weights"] | loss_weights}


def cascade_mask_rcnn_parts(backbone: Any, num_classes: int, **options: Any) -> dict[str, Any]:
    """Builds CascadeMaskRCNN's arguments.

    Args:
        backbone, num_classes: see `mask_rcnn_parts`.
        options: keyword arguments of `mask_rcnn_parts` and `cascade_rcnn_parts`.
    """
    return mask_rcnn_parts(backbone, num_classes, box_parts=cascade_rcnn_parts, **options)


class CascadeRCNN(FasterRCNN):
    """A FasterRCNN whose RoI heads are CascadeRoIHeads.

    Args:
        arguments: the arguments of FasterRCNN.
    """


class CascadeMaskRCNN(CascadeRCNN):
    """A CascadeRCNN whose last stage has a MaskBranch; its masks are those of MaskRCNN.

    Args:
        arguments: the arguments of FasterRCNN.
    """


def cascade_rcnn(
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
) -> CascadeRCNN:
    """A Cascade R-CNN with a timm backbone and a feature pyramid.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid and the RPN.
        options: keyword arguments of `cascade_rcnn_parts` and `faster_rcnn_parts`.
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
    return channels_last(CascadeRCNN(**cascade_rcnn_parts(pyramid, num_classes, **options)))


def cascade_mask_rcnn(
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
) -> CascadeMaskRCNN:
    """A Cascade R-CNN that also predicts a mask for each box.

    Args:
        backbone: timm's model name.
        num_classes: number of classes with background, which is class 0.
        pretrained_backbone: use timm's weights, which are downloaded at the first use.
        backbone_weights: a file with the weights of the backbone; see `timm_body`.
        trainable_backbone_layers: see `timm_body`.
        batch_norm: see `timm_body`.
        neck: "fpn", "pafpn", "bifpn", "hybrid" or "elan"; see `timm_pyramid`.
        fpn_channels: number of channels of the pyramid, the RPN and the mask head.
        options: keyword arguments of `cascade_mask_rcnn_parts`.
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
    parts = cascade_mask_rcnn_parts(pyramid, num_classes, **options)
    return channels_last(CascadeMaskRCNN(**parts))
