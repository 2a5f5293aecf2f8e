# SPDX-License-Identifier: BSD-3-Clause
"""The second stage of Faster R-CNN: the class and the refined box of each proposal, and its mask.

Definitions are torchvision's (models/detection/roi_heads.py), on padded batches. In training the
ground-truth boxes are added to the proposals, so that there are positives from the first step on.
The mask head learns only from positives. These are among the first
batch_size_per_image * positive_fraction rows of each image's sample, a fixed number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models.batch import Batch, index_of_some, rows_in_use
from fastdet.models.losses import box_regression_loss, widened
from fastdet.models.row_norms import check_batch_norms, run_on_rows
from fastdet.models.running import run_on_rois
from fastdet.ops import (
    encode_boxes,
    mask_rcnn_loss,
    match_anchors,
    multiscale_roi_align,
    roi_detections,
    sample_matches,
)
from fastdet.ops.detections import Detections
from fastdet.ops.padded_rows import row_mask, take_rows


class TwoMLPHead(nn.Module):
    """Two linear layers on the pooled features."""

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
        """(K, in_features) -> logits (K, C) and deltas (K, 4 C), four for each class."""
        return self.cls_score(hidden), self.bbox_pred(hidden)


class ClassAgnosticPredictor(nn.Module):
    """Class logits, and box deltas that are the same for all classes (Cascade R-CNN)."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes)
        self.bbox_pred = nn.Linear(in_features, 4)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(K, in_features) -> logits (K, C) and deltas (K, 4)."""
        return self.cls_score(hidden), self.bbox_pred(hidden)


@dataclass(frozen=True)
class RoIPooling:
    """How RoIs are pooled from the levels of a pyramid.

    Attributes:
        scales: feature pixels per image pixel of the levels to pool from, by level index.
        output_size, sampling_ratio, canonical_scale, canonical_level: see `multiscale_roi_align`.
    """

    scales: Mapping[int, float]
    output_size: tuple[int, int]
    sampling_ratio: int
    canonical_scale: int
    canonical_level: int

    def __call__(self, features: Sequence[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        """Pyramid, boxes (B, K, 4) xyxy, counts (B,) -> (B, K, C, h, w)."""
        return multiscale_roi_align(self.levels(features), boxes, counts, *self.arguments())

    def levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The levels of the pyramid to pool from."""
        return [features[level] for level in self.scales]

    def arguments(self) -> tuple[tuple[int, int], list[float], int, int, int]:
        """Those of `multiscale_roi_align` after levels, boxes and counts."""
        return (
            self.output_size,
            list(self.scales.values()),
            self.sampling_ratio,
            self.canonical_scale,
            self.canonical_level,
        )


class MaskBranch(NamedTuple):
    """The parts of RoIHeads that predict masks.

    Attributes:
        head: pooled (K, C, h, w) -> hidden, such as MaskRCNNHeads.
        predictor: hidden -> mask logits (K, num_classes, M, M), such as MaskRCNNPredictor.
        pooling: how boxes are pooled for the head.
    """

    head: nn.Module
    predictor: nn.Module
    pooling: RoIPooling


class Sample(NamedTuple):
    """Boxes for the losses. Rows of an image: first positives, then background, then padding."""

    boxes: Tensor  # (B, S, 4) xyxy
    match: Tensor  # (B, S) int64, the assigned gt row, negative for background
    valid: Tensor  # (B, S) bool, False for padding


class RoIHeads(nn.Module):
    """Classifies and refines proposals; with a MaskBranch it also predicts their masks.

    Args:
        box_head: pooled (K, C, h, w) -> hidden, such as TwoMLPHead. BatchNorms that are trained
            must be children of Sequentials, where padding can be excluded from their statistics.
        box_predictor: hidden -> logits and deltas, such as FastRCNNPredictor or
            ClassAgnosticPredictor.
        pooling: how boxes are pooled for the box_head.
        num_classes: number of classes with background, which is class 0.
        fg_iou_thresh: a proposal is foreground if its best IoU is >= this.
        bg_iou_thresh: a proposal is background if its best IoU is below this.
        batch_size_per_image: number of proposals of an image that are sampled for the losses.
        positive_fraction: maximum fraction of positives among them.
        bbox_reg_weights: factors of the deltas dx, dy, dw, dh.
        score_thresh: a detection's probability is above this.
        nms_thresh: a detection suppresses detections of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image.
        masks: the mask heads; the rule for BatchNorms is that of box_head.

    Raises:
        ValueError: a BatchNorm whose statistics would include padding.
    """

    min_size = 1e-2  # minimum side of a detection in pixels, as in torchvision

    def __init__(
        self,
        box_head: nn.Module,
        box_predictor: nn.Module,
        pooling: RoIPooling,
        num_classes: int,
        *,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: tuple[float, float, float, float],
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        masks: MaskBranch | None = None,
    ) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor
        # These attributes give the parameters torchvision's names.
        self.mask_head, self.mask_predictor, self.mask_pooling = masks or (None, None, None)
        for name, head in self.named_children():
            check_batch_norms(name, head)
        self.pooling = pooling
        self.num_classes = num_classes
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.bbox_reg_weights = bbox_reg_weights
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img

    @property
    def learns_masks(self) -> bool:
        """Whether there is a MaskBranch."""
        return self.mask_head is not None

    def class_layers(self) -> dict[str, float]:
        """The layers whose number of outputs depends on the classes: name -> initial bias."""
        layers = {"box_predictor.cls_score": 0.0}
        if not isinstance(self.box_predictor, ClassAgnosticPredictor):
            layers |= {"box_predictor.bbox_pred": 0.0}
        return layers | ({"mask_predictor.mask_fcn_logits": 0.0} if self.learns_masks else {})

    def forward(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pyramid, proposals (B, K, 4), counts (B,) -> logits (B, K, C), deltas (B, K, C, 4).

        Deltas of a ClassAgnosticPredictor are expanded to all classes, without a copy.
        """
        real = row_mask(counts, proposals.shape[1]).flatten()
        levels, arguments = self.pooling.levels(features), self.pooling.arguments()
        hidden = run_on_rois(self.box_head, levels, proposals, counts, arguments)
        if hidden is None:
            pooled = self.pooling(features, proposals, counts).flatten(0, 1)
            hidden = run_on_rows(self.box_head, pooled, real)
        logits, deltas = run_on_rows(self.box_predictor, hidden, real)
        shape = proposals.shape[:2]
        logits = logits.unflatten(0, shape)
        return logits, deltas.reshape(*shape, -1, 4).expand(*logits.shape, 4)

    def mask_logits(self, features: Sequence[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        """Pyramid, boxes (B, K, 4) xyxy, counts (B,) -> (B, K, num_classes, M, M)."""
        assert self.mask_pooling is not None
        rows = self.mask_pooling(features, boxes, counts).flatten(0, 1)
        real = row_mask(counts, boxes.shape[1]).flatten()
        shape = boxes.shape[:2]
        index = index_of_some(real)
        if index is not None:
            rows, real = rows[index], real[index]
        for network in (self.mask_head, self.mask_predictor):
            assert network is not None
            rows = run_on_rows(network, rows, real)
        if index is not None:
            rows = rows.new_zeros(shape.numel(), *rows.shape[1:]).index_copy(0, index, rows)
        return rows.unflatten(0, shape)

    def sample(self, proposals: Tensor, counts: Tensor, batch: Batch) -> Sample:
        """Samples boxes for the losses from the proposals and the ground truth.

        Proposals are (B, P, 4) xyxy, counts (B,). Follows torchvision's select_training_samples.
        """
        return self.sample_among(proposals, row_mask(counts, proposals.shape[1]), batch)[0]

    def sample_among(self, proposals: Tensor, real: Tensor, batch: Batch) -> tuple[Sample, Tensor]:
        """`sample` of the proposals that the mask `real` (B, P) selects.

        Returns:
            The sample, and (B, S) bool: whether a row is one of the proposals. The other rows are
            ground truth or padding.
        """
        boxes = torch.cat((proposals, batch.gt_boxes), dim=1)
        of_gt = row_mask(batch.gt_counts, batch.gt_boxes.shape[1])
        match, _ = match_anchors(
            boxes,
            batch.gt_boxes,
            batch.gt_counts,
            self.fg_iou_thresh,
            self.bg_iou_thresh,
            low_quality="none",
        )
        match = match.where(torch.cat((real, of_gt), dim=1), -2)
        sampled, valid = sample_matches(match, self.batch_size_per_image, self.positive_fraction)
        rows = rows_in_use(valid.sum(dim=1), sampled.shape[1])
        sampled, valid = sampled[:, :rows], valid[:, :rows]
        sample = Sample(take_rows(boxes, sampled), match.gather(1, sampled), valid)
        return sample, valid & (sampled < proposals.shape[1])

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """loss_classifier, loss_box_reg and, with a MaskBranch, loss_mask.

        Args:
            features: the levels of the pyramid.
            proposals: (B, P, 4) xyxy.
            counts: (B,), number of real proposals of each image.
            batch: the ground truth.
        """
        sample = self.sample(proposals, counts, batch)
        if not self.learns_masks:
            return self.box_losses(features, sample, batch)
        loss_mask = self.mask_loss(features, sample, batch)
        return self.box_losses(features, sample, batch) | {"loss_mask": loss_mask}

    def box_losses(
        self, features: Sequence[Tensor], sample: Sample, batch: Batch
    ) -> dict[str, Tensor]:
        """loss_classifier and loss_box_reg, means over the sampled proposals of the batch.

        Follows torchvision's fastrcnn_loss.
        """
        logits, deltas = self(features, sample.boxes, sample.valid.sum(dim=1))
        return self.box_losses_of(logits, deltas, sample, batch)

    def box_losses_of(
        self, logits: Tensor, deltas: Tensor, sample: Sample, batch: Batch
    ) -> dict[str, Tensor]:
        """`box_losses` of logits (B, S, C) and deltas (B, S, C, 4) of the sampled boxes."""
        boxes, match, valid = sample
        positive = valid & (match >= 0)
        labels = take_rows(batch.gt_labels, match).where(positive, 0)  # (B, S)
        count = valid.sum().clamp(min=1)
        loss_classifier = F.cross_entropy(
            widened(logits.flatten(0, 1)),
            labels.where(valid, -100).flatten(),
            ignore_index=-100,
            reduction="sum",
        )
        own = labels[..., None, None].expand(-1, -1, 1, 4)
        deltas = widened(deltas.gather(2, own).squeeze(2))  # (B, S, 4), those of the label
        targets = encode_boxes(take_rows(batch.gt_boxes, match), boxes, self.bbox_reg_weights)
        loss_box_reg = box_regression_loss(deltas, targets, positive)
        return {"loss_classifier": loss_classifier / count, "loss_box_reg": loss_box_reg / count}

    def mask_loss(self, features: Sequence[Tensor], sample: Sample, batch: Batch) -> Tensor:
        """loss_mask, the mean over the mask pixels of all positives.

        Follows torchvision's maskrcnn_loss.
        """
        if batch.gt_masks is None:
            raise ValueError("gt_masks: expected a batch with masks, made by this model's pad")
        match = sample.match.where(sample.valid, -1)
        match = match[:, : int(self.batch_size_per_image * self.positive_fraction)]
        counts = (match >= 0).sum(dim=1)
        match = match[:, : rows_in_use(counts, match.shape[1])]
        boxes = sample.boxes[:, : match.shape[1]]
        logits = self.mask_logits(features, boxes, counts)
        labels = take_rows(batch.gt_labels, match).where(match >= 0, 0)
        return mask_rcnn_loss(logits, labels, batch.gt_masks, boxes, match)

    def detect(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor, sizes: Tensor
    ) -> Detections:
        """The detections of each image, clipped to its size (B, 2).

        With a MaskBranch they have masks.
        """
        proposals = proposals[:, : rows_in_use(counts, proposals.shape[1])]
        logits, deltas = self(features, proposals, counts)
        return self.detections_of(features, logits, deltas, proposals, counts, sizes)

    def detections_of(
        self,
        features: Sequence[Tensor],
        logits: Tensor,
        deltas: Tensor,
        proposals: Tensor,
        counts: Tensor,
        sizes: Tensor,
    ) -> Detections:
        """`detect` of logits (B, K, C) and deltas (B, K, C, 4) of the proposals (B, K, 4)."""
        kept = roi_detections(
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
        found = Detections(*kept)
        return self._with_masks(features, found) if self.learns_masks else found

    def _with_masks(self, features: Sequence[Tensor], found: Detections) -> Detections:
        """Adds masks to detections: the probabilities of each box's pixels for its label.

        Follows torchvision's maskrcnn_inference.
        """
        total = found.boxes.shape[1]
        rows = rows_in_use(found.counts, total)
        logits = self.mask_logits(features, found.boxes[:, :rows], found.counts)
        labels = found.labels[:, :rows, None, None, None].expand(-1, -1, 1, *logits.shape[3:])
        masks = widened(logits.gather(2, labels).squeeze(2)).sigmoid()
        masks = masks.where(row_mask(found.counts, rows)[..., None, None], 0.0)
        padded = F.pad(masks, (0, 0, 0, 0, 0, total - rows))
        # Not `_replace`: Dynamo of torch 2.11 cannot return its result.
        return Detections(found.boxes, found.scores, found.labels, found.counts, padded)
