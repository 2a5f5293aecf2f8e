# SPDX-License-Identifier: BSD-3-Clause
"""The region proposal network: where in an image there may be an object of any class.

Definitions are torchvision's (models/detection/rpn.py), on padded batches. The best anchors of each
level are selected by their logits, and only these are decoded.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models.anchors import (
    Anchors,
    Cells,
    in_anchor_order,
    pyramid_anchors,
    top_of_each_level,
)
from fastdet.models.batch import Batch, Detections, take_rows
from fastdet.models.losses import box_regression_loss
from fastdet.models.postprocess import has_sides, suppress
from fastdet.ops import decode_boxes, encode_boxes, match_anchors, sample_matches


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and box deltas for each anchor, the same at all levels."""

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        # Nested as in torchvision, so that its parameter names fit.
        self.conv = nn.Sequential(nn.Sequential(conv, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for layer in (conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Pyramid -> objectness logits (B, A) and deltas (B, A, 4), in anchor order."""
        hidden = [self.conv(feature) for feature in features]
        objectness = in_anchor_order([self.cls_logits(x) for x in hidden], 1).squeeze(2)
        return objectness, in_anchor_order([self.bbox_pred(x) for x in hidden], 4)


class RegionProposalNetwork(nn.Module):
    """Proposals of a feature pyramid, and the losses that teach them.

    Args:
        in_channels: of every level.
        cells: `cell_anchors`, equally many at each level.
        fg_iou_thresh, bg_iou_thresh: an anchor is positive from the first IoU with a box on, and
            negative below the second.
        batch_size_per_image, positive_fraction: anchors sampled for the losses.
        pre_nms_top_n, post_nms_top_n: (train, eval) numbers of an image's proposals, the first for
            each level.
        nms_thresh: IoU above which a proposal suppresses another of its level.
        score_thresh: least probability of a proposal.
    """

    min_size = 1e-3  # pixels; a proposal that clipping leaves without a side is none

    def __init__(
        self,
        in_channels: int,
        cells: Cells,
        *,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_top_n: tuple[int, int],
        post_nms_top_n: tuple[int, int],
        nms_thresh: float,
        score_thresh: float,
    ) -> None:
        super().__init__()
        self.head = RPNHead(in_channels, len(cells[0]))
        self.cells = cells
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Anchors]:
        """Objectness logits (B, A), deltas (B, A, 4) and the anchors they belong to."""
        objectness, deltas = self.head(features)
        return objectness, deltas, pyramid_anchors(images, features, self.cells)

    def proposals(
        self, objectness: Tensor, deltas: Tensor, anchors: Anchors, sizes: Tensor
    ) -> Detections:
        """The best boxes of each image, clipped to its size (B, 2); labels are the levels.

        No gradient flows through. Follows torchvision's filter_proposals.
        """
        mode = 0 if self.training else 1
        logits, index = top_of_each_level(
            objectness.detach().float(), anchors, self.pre_nms_top_n[mode]
        )  # (B, L, k)
        levels = torch.arange(index.shape[1], device=index.device)[:, None].expand_as(index)
        scores, index, levels = logits.sigmoid().flatten(1), index.flatten(1), levels.flatten(1)
        boxes = decode_boxes(
            take_rows(deltas.detach(), index).float(), anchors.boxes[index], sizes=sizes
        )  # (B, L * k, 4)
        valid = has_sides(boxes, self.min_size) & (scores >= self.score_thresh)
        valid &= logits.flatten(1) > -torch.inf
        return suppress(boxes, scores, levels, valid, self.nms_thresh, self.post_nms_top_n[mode])

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Anchors, batch: Batch
    ) -> dict[str, Tensor]:
        """loss_objectness and loss_rpn_box_reg, means over the batch's sampled anchors.

        Follows torchvision's assign_targets_to_anchors and compute_loss.
        """
        match, _ = match_anchors(
            anchors.boxes,
            batch.gt_boxes,
            batch.gt_counts,
            self.fg_iou_thresh,
            self.bg_iou_thresh,
            low_quality="anchor_best",
        )  # (B, A)
        sampled, valid = sample_matches(match, self.batch_size_per_image, self.positive_fraction)
        match = match.gather(1, sampled)  # (B, S)
        positive = valid & (match >= 0)
        count = valid.sum().clamp(min=1)
        logits = objectness.gather(1, sampled).float()
        loss_objectness = F.binary_cross_entropy_with_logits(
            logits, positive.to(logits.dtype), weight=valid.to(logits.dtype), reduction="sum"
        )
        targets = encode_boxes(take_rows(batch.gt_boxes, match), anchors.boxes[sampled])
        loss_boxes = box_regression_loss(take_rows(deltas, sampled).float(), targets, positive)
        return {
            "loss_objectness": loss_objectness / count,
            "loss_rpn_box_reg": loss_boxes / count,
        }
