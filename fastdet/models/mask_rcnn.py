# SPDX-License-Identifier: BSD-3-Clause
"""Mask R-CNN: Faster R-CNN with a third head that says which part of each box is the object.

Definitions, defaults, loss names and parameter names are torchvision's
(models/detection/mask_rcnn.py). Paper: https://arxiv.org/abs/1703.06870. In training the mask head
sees the positives alone: the first batch_size_per_image * positive_fraction rows of each image's
sample, a fixed number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models.backbones import BackboneWithFPN, timm_body
from fastdet.models.batch import Batch, Detections, rows_in_use
from fastdet.models.detector import channels_last
from fastdet.models.faster_rcnn import FasterRCNN, FirstStage, scales_of
from fastdet.models.losses import widened
from fastdet.models.necks import FeaturePyramidNetwork, LastLevelMaxPool
from fastdet.models.roi_heads import RoIPooling, Sample
from fastdet.models.row_norms import check_batch_norms, run_on_rows
from fastdet.ops import mask_rcnn_loss, paste_masks
from fastdet.ops.padded_rows import row_mask, take_rows


class MaskRCNNHeads(nn.Sequential):
    """3x3 convolutions over the pooled features, `layers` wide."""

    def __init__(self, in_channels: int, layers: Sequence[int]) -> None:
        widths = [in_channels, *layers]
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, layers, strict=False)]
        # Nested as in torchvision, so that its parameter names fit.
        super().__init__(*(nn.Sequential(conv, nn.ReLU(inplace=True)) for conv in convs))
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


class MaskRCNNPredictor(nn.Sequential):
    """Mask logits of each class, of twice the size of what comes in."""

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(in_channels, hidden_channels, 2, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.mask_fcn_logits = nn.Conv2d(hidden_channels, num_classes, 1)
        for conv in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


class MaskRCNN(FasterRCNN):
    """A Faster R-CNN that finds masks too.

    `model(images)` adds masks (K, 1, H, W) in each image's pixels: bool, where the probability is
    above mask_threshold; or the probabilities, where that is None. Targets need masks (G, H, W).

    Args:
        backbone, num_classes: see FasterRCNN.
        mask_scales, mask_output_size, mask_sampling_ratio, mask_canonical_scale,
            mask_canonical_level: as box_scales and so on.
        mask_head, mask_predictor: instead of MaskRCNNHeads and a MaskRCNNPredictor. BatchNorms as
            RoIHeads has them.
        mask_layers: widths of the MaskRCNNHeads; None: four times the backbone's.
        mask_threshold: in [0, 1], or None.
        loss_mask_weight: the factor of loss_mask.
        others: see FasterRCNN.

    Raises:
        ValueError: a BatchNorm where padding would enter its statistics.
    """

    learns_masks = True

    def __init__(
        self,
        backbone: Any,
        num_classes: int,
        *,
        mask_scales: Mapping[int, float] | None = None,
        mask_output_size: tuple[int, int] = (14, 14),
        mask_sampling_ratio: int = 2,
        mask_canonical_scale: int = 224,
        mask_canonical_level: int = 4,
        mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
        mask_layers: Sequence[int] | None = None,
        mask_threshold: float | None = 0.5,
        loss_mask_weight: float = 1.0,
        **others: Any,
    ) -> None:
        super().__init__(backbone, num_classes, **others)
        layers = mask_layers or (backbone.out_channels,) * 4
        if mask_head is None:
            mask_head = MaskRCNNHeads(backbone.out_channels, layers)
        if mask_predictor is None:
            mask_predictor = MaskRCNNPredictor(layers[-1], layers[-1], num_classes)
        check_batch_norms("mask_head", mask_head)
        check_batch_norms("mask_predictor", mask_predictor)
        # Among the RoI heads, where torchvision has them: the names of the parameters are the same.
        self.roi_heads.mask_head = mask_head
        self.roi_heads.mask_predictor = mask_predictor
        self.mask_pooling = RoIPooling(
            mask_scales or scales_of(backbone),
            mask_output_size,
            mask_sampling_ratio,
            mask_canonical_scale,
            mask_canonical_level,
        )
        self.mask_threshold = mask_threshold
        self.loss_weights["loss_mask"] = loss_mask_weight

    def _head_losses(
        self, features: list[Tensor], sample: Sample, batch: Batch
    ) -> dict[str, Tensor]:
        """FasterRCNN's, and loss_mask, a mean over the pixels of all positives.

        Follows torchvision's maskrcnn_loss.
        """
        if batch.gt_masks is None:
            raise ValueError("gt_masks: expected a batch with masks, made by this model's pad")
        heads = self.roi_heads
        match = sample.match.where(sample.valid, -1)
        match = match[:, : int(heads.batch_size_per_image * heads.positive_fraction)]
        counts = (match >= 0).sum(dim=1)
        match = match[:, : rows_in_use(counts, match.shape[1])]
        boxes = sample.boxes[:, : match.shape[1]]
        logits = self._mask_logits(features, boxes, counts)
        labels = take_rows(batch.gt_labels, match).where(match >= 0, 0)
        loss = mask_rcnn_loss(logits, labels, batch.gt_masks, boxes, match)
        return heads.losses(features, sample, batch) | {"loss_mask": loss}

    def _detect(self, first: FirstStage, batch: Batch) -> Detections:
        """FasterRCNN's, and how probable each pixel of their boxes is for their labels.

        Follows torchvision's maskrcnn_inference.
        """
        found = super()._detect(first, batch)
        total = found.boxes.shape[1]
        rows = rows_in_use(found.counts, total)
        logits = self._mask_logits(first.features, found.boxes[:, :rows], found.counts)
        labels = found.labels[:, :rows, None, None, None].expand(-1, -1, 1, *logits.shape[3:])
        masks = widened(logits.gather(2, labels).squeeze(2)).sigmoid()
        masks = masks.where(row_mask(found.counts, rows)[..., None, None], 0.0)
        return found._replace(masks=F.pad(masks, (0, 0, 0, 0, 0, total - rows)))

    def _mask_logits(self, features: list[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        """Pyramid, boxes (B, K, 4) xyxy, counts (B,) -> (B, K, C, M, M)."""
        pooled = self.mask_pooling(features, boxes, counts).flatten(0, 1)
        real = row_mask(counts, boxes.shape[1]).flatten()
        heads: Any = self.roi_heads
        logits = run_on_rows(heads.mask_predictor, run_on_rows(heads.mask_head, pooled, real), real)
        return logits.unflatten(0, boxes.shape[:2])

    def answers(self, found: Detections, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Detector's, with masks pasted where their boxes are."""
        answers = super().answers(found, images)
        for answer, image in zip(answers, images, strict=True):
            size = image.shape[-2], image.shape[-1]
            masks = paste_masks(answer["masks"], answer["boxes"], size, self.mask_threshold)
            answer["masks"] = masks[:, None]
        return answers


def mask_rcnn(
    backbone: str = "resnet50",
    num_classes: int = 91,
    *,
    pretrained_backbone: bool = False,
    trainable_backbone_layers: int | None = None,
    frozen_batch_norm: bool | None = None,
    fpn_channels: int = 256,
    **numbers: Any,
) -> MaskRCNN:
    """A Mask R-CNN with a timm backbone and a feature pyramid.

    Args:
        backbone: timm's model name.
        num_classes: with background, which is 0.
        pretrained_backbone: timm's weights, downloaded at the first use.
        trainable_backbone_layers: see `timm_body`.
        frozen_batch_norm: see `timm_body`.
        fpn_channels: width of the pyramid, the RPN and the mask head.
        numbers: the keyword arguments of MaskRCNN and FasterRCNN.
    """
    body, channels = timm_body(
        backbone,
        pretrained=pretrained_backbone,
        trainable_layers=trainable_backbone_layers,
        frozen_batch_norm=frozen_batch_norm,
    )
    fpn = FeaturePyramidNetwork(channels, fpn_channels, LastLevelMaxPool())
    return channels_last(MaskRCNN(BackboneWithFPN(body, fpn), num_classes, **numbers))
