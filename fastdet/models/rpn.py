# SPDX-License-Identifier: BSD-3-Clause
"""The region proposal network (RPN): proposes boxes that may contain an object of any class.

Definitions are torchvision's (models/detection/rpn.py), on padded batches. The outputs of the head
stay separate, one tensor for each level; only the losses concatenate the levels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models.anchors import Cells, in_anchor_order, pyramid_anchors
from fastdet.models.batch import Batch
from fastdet.models.losses import box_regression_loss, widened
from fastdet.models.running import run
from fastdet.ops import encode_boxes, match_anchors, rpn_proposals, sample_matches
from fastdet.ops.detections import Detections
from fastdet.ops.padded_rows import take_rows


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and box deltas for each anchor; shared by all levels."""

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        # Nested as in torchvision, so that the parameter names are the same.
        self.conv = nn.Sequential(nn.Sequential(conv, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for layer in (conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid -> maps of each level: objectness (B, N, H_l, W_l), deltas (B, 4 N, H_l, W_l)."""
        objectness, deltas = [], []
        for feature in features:  # a level's hidden map is freed before the next level's is made
            hidden = self.conv(feature)
            objectness.append(self.cls_logits(hidden))
            deltas.append(self.bbox_pred(hidden))
        return objectness, deltas


class RegionProposalNetwork(nn.Module):
    """Computes proposals from a feature pyramid, and the losses of the RPN.

    Args:
        head: a module such as RPNHead.
        cells: the anchors of a location at each level; their number must fit the head. See
            `cell_anchors`.
        fg_iou_thresh: an anchor is foreground if its best IoU is >= this.
        bg_iou_thresh: an anchor is background if its best IoU is below this.
        batch_size_per_image: number of anchors of an image that are sampled for the losses.
        positive_fraction: maximum fraction of positives among them.
        pre_nms_top_n: (training, eval) maximum number of proposals of each level before NMS.
        post_nms_top_n: (training, eval) maximum number of proposals of an image after NMS.
        nms_thresh: a proposal suppresses proposals of its level if their IoU is above this.
        score_thresh: minimum probability of a proposal.
        min_size: minimum length of both sides of a proposal in pixels, after clipping.
    """

    def __init__(
        self,
        head: nn.Module,
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
        min_size: float = 1e-3,
    ) -> None:
        super().__init__()
        self.head = head
        self.cells = cells
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh
        self.min_size = min_size

    def forward(
        self, images: Tensor, features: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Objectness logits (B, A_l), deltas (B, A_l, 4), and the anchors (A, 4) of all levels."""
        objectness, deltas = run(self.head, features, self.batch_size_per_image)
        logits = [level.squeeze(2) for level in in_anchor_order(objectness, 1)]
        anchors = pyramid_anchors(images, features, self.cells)
        return logits, in_anchor_order(deltas, 4), anchors

    def proposals(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Tensor,
        sizes: Tensor,
    ) -> Detections:
        """The best boxes of each image, clipped to its size (B, 2). The labels are the levels.

        There is no gradient.
        """
        mode = 0 if self.training else 1
        found = rpn_proposals(
            objectness,
            deltas,
            anchors,
            sizes,
            self.pre_nms_top_n[mode],
            self.post_nms_top_n[mode],
            self.nms_thresh,
            self.score_thresh,
            self.min_size,
        )
        return Detections(*found)

    def losses(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Tensor,
        batch: Batch,
    ) -> dict[str, Tensor]:
        """loss_objectness and loss_rpn_box_reg, means over the sampled anchors of the batch.

        Follows torchvision's assign_targets_to_anchors and compute_loss.
        """
        match, _ = match_anchors(
            anchors,
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
        logits = widened(torch.cat(list(objectness), dim=1).gather(1, sampled))
        loss_objectness = F.binary_cross_entropy_with_logits(
            logits, positive.to(logits.dtype), weight=valid.to(logits.dtype), reduction="sum"
        )
        targets = encode_boxes(take_rows(batch.gt_boxes, match), anchors[sampled])
        own = widened(take_rows(torch.cat(list(deltas), dim=1), sampled))  # (B, S, 4)
        loss_boxes = box_regression_loss(own, targets, positive)
        return {
            "loss_objectness": loss_objectness / count,
            "loss_rpn_box_reg": loss_boxes / count,
        }
