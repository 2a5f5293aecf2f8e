# SPDX-License-Identifier: BSD-3-Clause
"""The second stage of Faster R-CNN: what each proposal shows, and where exactly it lies.

Definitions are torchvision's (models/detection/roi_heads.py), on padded batches. In training the
ground truth joins the proposals, so that there is a positive from the first step on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models.batch import Batch, Detections, rows_in_use
from fastdet.models.losses import box_regression_loss, widened
from fastdet.models.row_norms import check_batch_norms, run_on_rows
from fastdet.ops import (
    encode_boxes,
    match_anchors,
    multiscale_roi_align,
    roi_detections,
    sample_matches,
)
from fastdet.ops.padded_rows import row_mask, take_rows


class TwoMLPHead(nn.Module):
    """Two linear layers over the pooled features."""

    def __init__(self, in_features: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """(K, C, h, w) -> (K, representation_size)."""
        return F.relu(self.fc7(F.relu(self.fc6(pooled.flatten(1)))))


class FastRCNNPredictor(nn.Module):
    """Class logits, and box deltas for each class."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes)
        self.bbox_pred = nn.Linear(in_features, num_classes * 4)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(K, in_features) -> logits (K, C) and deltas (K, 4 C), class by class."""
        return self.cls_score(hidden), self.bbox_pred(hidden)


@dataclass(frozen=True)
class RoIPooling:
    """From where in the pyramid, and how finely, RoIs are pooled.

    Attributes:
        scales: feature pixels per image pixel of the levels to pool from, by the level's index.
        output_size, sampling_ratio, canonical_scale, canonical_level: see `multiscale_roi_align`.
    """

    scales: Mapping[int, float]
    output_size: tuple[int, int]
    sampling_ratio: int
    canonical_scale: int
    canonical_level: int

    def __call__(self, features: Sequence[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        """Pyramid, boxes (B, K, 4) xyxy, counts (B,) -> (B, K, C, h, w)."""
        return multiscale_roi_align(
            [features[level] for level in self.scales],
            boxes,
            counts,
            self.output_size,
            list(self.scales.values()),
            self.sampling_ratio,
            self.canonical_scale,
            self.canonical_level,
        )


class Sample(NamedTuple):
    """Boxes to learn from: of each image first positives, then background, then padding."""

    boxes: Tensor  # (B, S, 4) xyxy
    match: Tensor  # (B, S) int64, the gt row that each one matches, negative for background
    valid: Tensor  # (B, S) bool, whether each is real: a prefix of the image's rows


class RoIHeads(nn.Module):
    """Classifies and refines proposals.

    Args:
        box_head: pooled (K, C, h, w) -> hidden, as TwoMLPHead. BatchNorms that train must lie in
            Sequentials alone, where their statistics can leave out padding.
        box_predictor: hidden -> logits and deltas, as FastRCNNPredictor.
        pooling: what the box_head sees of a box.
        fg_iou_thresh, bg_iou_thresh: a proposal is positive from the first IoU with a box on, and
            background below the second.
        batch_size_per_image, positive_fraction: proposals sampled for the losses.
        bbox_reg_weights: factors of the deltas (x, y, w, h).
        score_thresh: a detection's probability is above it.
        nms_thresh: IoU above which a detection suppresses another of its class.
        detections_per_img: D.

    Raises:
        ValueError: a BatchNorm where padding would enter its statistics.
    """

    min_size = 1e-2  # pixels; torchvision's for detections

    def __init__(
        self,
        box_head: nn.Module,
        box_predictor: nn.Module,
        pooling: RoIPooling,
        *,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: tuple[float, float, float, float],
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
    ) -> None:
        super().__init__()
        check_batch_norms("box_head", box_head)
        check_batch_norms("box_predictor", box_predictor)
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.pooling = pooling
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.bbox_reg_weights = bbox_reg_weights
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img

    def forward(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pyramid, proposals (B, K, 4), counts (B,) -> logits (B, K, C), deltas (B, K, C, 4)."""
        pooled = self.pooling(features, proposals, counts).flatten(0, 1)
        real = row_mask(counts, proposals.shape[1]).flatten()
        hidden = run_on_rows(self.box_head, pooled, real)
        logits, deltas = run_on_rows(self.box_predictor, hidden, real)
        shape = (*proposals.shape[:2], logits.shape[1])
        return logits.reshape(shape), deltas.reshape(*shape, 4)

    def sample(self, proposals: Tensor, counts: Tensor, batch: Batch) -> Sample:
        """What to learn from among proposals (B, P, 4) xyxy, counts (B,), and the ground truth.

        Follows torchvision's select_training_samples.
        """
        boxes = torch.cat((proposals, batch.gt_boxes), dim=1)
        real = torch.cat(
            (
                row_mask(counts, proposals.shape[1]),
                row_mask(batch.gt_counts, batch.gt_boxes.shape[1]),
            ),
            dim=1,
        )
        match, _ = match_anchors(
            boxes,
            batch.gt_boxes,
            batch.gt_counts,
            self.fg_iou_thresh,
            self.bg_iou_thresh,
            low_quality="none",
        )
        match = match.where(real, -2)
        sampled, valid = sample_matches(match, self.batch_size_per_image, self.positive_fraction)
        rows = rows_in_use(valid.sum(dim=1), sampled.shape[1])
        sampled, valid = sampled[:, :rows], valid[:, :rows]
        return Sample(take_rows(boxes, sampled), match.gather(1, sampled), valid)

    def losses(self, features: Sequence[Tensor], sample: Sample, batch: Batch) -> dict[str, Tensor]:
        """loss_classifier and loss_box_reg, means over the batch's sampled proposals.

        Follows torchvision's fastrcnn_loss.
        """
        boxes, match, valid = sample
        positive = valid & (match >= 0)
        labels = take_rows(batch.gt_labels, match).where(positive, 0)  # (B, S)
        logits, deltas = self(features, boxes, valid.sum(dim=1))
        count = valid.sum().clamp(min=1)
        loss_classifier = F.cross_entropy(
            widened(logits.flatten(0, 1)),
            labels.where(valid, -100).flatten(),
            ignore_index=-100,
            reduction="sum",
        )
        own = labels[..., None, None].expand(-1, -1, 1, 4)
        deltas = widened(deltas.gather(2, own).squeeze(2))  # (B, S, 4), of the label's class
        targets = encode_boxes(take_rows(batch.gt_boxes, match), boxes, self.bbox_reg_weights)
        loss_box_reg = box_regression_loss(deltas, targets, positive)
        return {"loss_classifier": loss_classifier / count, "loss_box_reg": loss_box_reg / count}

    def detect(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor, sizes: Tensor
    ) -> Detections:
        """The best classes of all proposals of each image, clipped to its size (B, 2)."""
        proposals = proposals[:, : rows_in_use(counts, proposals.shape[1])]
        logits, deltas = self(features, proposals, counts)
        found = roi_detections(
            logits,
            deltas,
            proposals,
            counts,
            sizes,
            self.bbox_reg_weights,
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_img,
            self.min_size,
        )
        return Detections(*found)
