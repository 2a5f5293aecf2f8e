# SPDX-License-Identifier: BSD-3-Clause
"""The losses of DETRs: each ground-truth box (gt) is learned by the query that it is matched to.

All decoder layers are matched in one call and their losses are computed together: tensors are
(L, B, Q, ...) with L layers. Everything has a fixed shape, and nothing waits for a GPU.
Paper: https://arxiv.org/abs/2005.12872. The definitions are those of transformers' losses of DETR,
Deformable DETR and RT-DETR, which a test compares.

A family calls `set_targets`, then `matched` or, for denoising queries, whose gts are known, its own
matching; then `query_losses`, and at last `summed_over_layers`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdet.models.batch import Batch
from fastdet.models.losses import label_targets, masked_iou_loss, row_ious, widened
from fastdet.models.relative_boxes import corners, relative_boxes
from fastdet.ops import match_queries, sigmoid_focal_loss
from fastdet.ops.padded_rows import take_rows


class SetTargets(NamedTuple):
    """The gts in the form of the queries.

    Attributes:
        labels: (B, G) int64, the column of the logits.
        boxes: (B, G, 4) cxcywh in fractions of the image's sides.
        counts: (B,) int64, the number of real rows.
        number: one number, by which sums over gts are divided: their number in the batch, at
            least 1.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor
    number: Tensor


class MatchingCosts(NamedTuple):
    """Arguments of `match_queries`; the defaults are those of Deformable DETR."""

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    kind: str = "focal"


# Logits (L, B, Q, C), labels (L, B, Q) of each query, -1 where it has no gt, IoUs (L, B, Q) with
# the gt, and the targets -> the loss of each layer (L,).
Classification = Callable[[Tensor, Tensor, Tensor, SetTargets], Tensor]


def set_targets(batch: Batch, first_label: int = 0, sizes: Tensor | None = None) -> SetTargets:
    """The gts of a batch as targets of queries.

    Args:
        batch: with at least one row of gts (`with_rows`).
        first_label: the label of the first column of the logits: 0 if background has a column,
            else 1.
        sizes: (B, 2), the height and width that boxes are fractions of. None: those of the images
            without padding.
    """
    boxes = relative_boxes(batch.gt_boxes, batch.sizes if sizes is None else sizes)
    number = batch.gt_counts.sum().clamp(min=1)
    return SetTargets(batch.gt_labels - first_label, boxes, batch.gt_counts, number)


def matched(
    logits: Tensor, boxes: Tensor, targets: SetTargets, costs: MatchingCosts, groups: int = 1
) -> Tensor:
    """(L, B, Q) int64: the gt of each query, or -1; see `match_queries`.

    Args:
        logits: (L, B, Q, C).
        boxes: (L, B, Q, 4) cxcywh in fractions.
        targets: the gts.
        costs: of a pair.
        groups: of queries, each of which is matched with all gts.
    """
    gts = targets.labels, targets.boxes, targets.counts
    return match_queries(widened(logits), widened(boxes), *gts, *costs, groups=groups)


def counted(targets: SetTargets, match: Tensor) -> SetTargets:
    """The targets with the number of queries (B, Q) that `match` gives a gt, at least 1."""
    return targets._replace(number=(match >= 0).sum().clamp(min=1))


def most_common(match: Tensor) -> Tensor:
    """(B, Q): the gt that most layers give a query, or -1 if none does; of equals the last layer's.

    D-FINE's union of the matches (L, B, Q) of all layers. A gt may have several queries.
    """
    match = match.flip(0)
    votes = ((match[:, None] == match) & (match >= 0)).sum(dim=0)  # (L, B, Q), for each layer's gt
    return match.gather(0, votes.argmax(dim=0, keepdim=True))[0]


class Pairs(NamedTuple):
    """What queries learn.

    Attributes:
        labels: (L, B, Q) int64, the column of the logits; -1 where there is no gt.
        boxes: (L, B, Q, 4) cxcywh of the gts; where there is none, the query's own.
        ious: (L, B, Q) of the queries' boxes with the gts, 0 where there is none; no gradient.
    """

    labels: Tensor
    boxes: Tensor
    ious: Tensor


def paired(boxes: Tensor, match: Tensor, targets: SetTargets) -> Pairs:
    """The gts of queries with boxes (L, B, Q, 4), from the match (L, B, Q)."""
    positive = match >= 0
    labels = _of_queries(targets.labels[..., None], match)[..., 0].where(positive, -1)
    gt_boxes = _of_queries(targets.boxes, match).to(boxes.dtype)
    # A row without a gt is compared with itself: no loss and no gradient, whatever it holds.
    gt_boxes = gt_boxes.where(positive[..., None], boxes.detach())
    ious = row_ious(corners(boxes.detach()), corners(gt_boxes)).where(positive, 0.0)
    return Pairs(labels, gt_boxes, ious)


def box_losses(boxes: Tensor, pairs: Pairs, targets: SetTargets) -> dict[str, Tensor]:
    """The losses bbox_regression and bbox_giou of each layer, (L,); see `query_losses`."""
    positive = pairs.labels >= 0
    giou = masked_iou_loss("giou", corners(boxes), corners(pairs.boxes), positive, eps=0.0)
    return {
        "bbox_regression": (boxes - pairs.boxes).abs().flatten(1).sum(1) / targets.number,
        "bbox_giou": giou.flatten(1).sum(1) / targets.number,
    }


def query_losses(
    logits: Tensor,
    boxes: Tensor,
    match: Tensor,
    targets: SetTargets,
    classification: Classification,
) -> dict[str, Tensor]:
    """The losses of each layer, (L,), by name: classification, bbox_regression and bbox_giou.

    The sum over matched queries of the L1 distance of their boxes to those of their gts, in
    fractions, and of 1 - GIoU; each divided by `targets.number`.

    Args:
        logits: (L, B, Q, C).
        boxes: (L, B, Q, 4) cxcywh in fractions.
        match: (L, B, Q), the gt of each query, or -1.
        targets: the gts. Several queries may have the same gt, as in denoising: then give a
            `number` that counts it as often (`counted`).
        classification: `softmax_loss`, `focal_loss` or `iou_aware_loss`, or another function of
            the same arguments.
    """
    logits, boxes = widened(logits), widened(boxes)
    pairs = paired(boxes, match, targets)
    losses = {"classification": classification(logits, pairs.labels, pairs.ious, targets)}
    return losses | box_losses(boxes, pairs, targets)


def softmax_loss(
    logits: Tensor, labels: Tensor, ious: Tensor, targets: SetTargets, no_object_weight: float = 0.1
) -> Tensor:
    """DETR's: cross entropy, in which a query without a gt should be background, column 0.

    The mean over queries, weighted: `no_object_weight` for a query without a gt, else 1.
    """
    weights = torch.where(labels >= 0, 1.0, no_object_weight).to(logits.dtype)  # (L, B, Q)
    entropy = F.cross_entropy(logits.flatten(0, 2), labels.clamp(min=0).flatten(), reduction="none")
    weighted = entropy.view_as(weights) * weights
    return weighted.flatten(1).sum(1) / weights.flatten(1).sum(1)


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    ious: Tensor,
    targets: SetTargets,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Deformable DETR's: the focal loss of all logits, divided by the number of gts."""
    losses = sigmoid_focal_loss(logits, labels, alpha, gamma)  # (L, B, Q, C)
    return losses.flatten(1).sum(1) / targets.number


def iou_aware_loss(
    logits: Tensor,
    labels: Tensor,
    ious: Tensor,
    targets: SetTargets,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> Tensor:
    """RT-DETR's varifocal loss: the score of the gt's class should be the IoU of the query's box.

    Binary cross entropy, weighted by the IoU q at the gt's class and by alpha * p^gamma elsewhere,
    with the probability p; divided by the number of gts. Unlike in VFNet's loss no gradient goes
    through p^gamma, and a gt whose box does not overlap has weight 0.
    """
    scores = label_targets(labels, ious.to(logits.dtype), logits.shape[-1])
    own = label_targets(labels, torch.ones_like(scores[..., 0]), logits.shape[-1])
    weights = alpha * logits.detach().sigmoid().pow(gamma) * (1 - own) + scores
    losses = F.binary_cross_entropy_with_logits(logits, scores, weights, reduction="none")
    return losses.flatten(1).sum(1) / targets.number


def summed_over_layers(losses: dict[str, Tensor], aux_weight: float = 1.0) -> dict[str, Tensor]:
    """Losses (L,) -> one number each: that of the last layer + aux_weight * those of the others."""
    return {name: of[-1] + aux_weight * of[:-1].sum() for name, of in losses.items()}


def prefixed(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses with other names, for a second set of queries."""
    return {f"{prefix}_{name}": loss for name, loss in losses.items()}


def _of_queries(rows: Tensor, match: Tensor) -> Tensor:
    """Rows `match` (L, B, Q) of (B, G, C) -> (L, B, Q, C); negative indices take row 0."""
    layers, _, queries = match.shape
    taken = take_rows(rows, match.movedim(0, 1).flatten(1))  # (B, L * Q, C)
    return taken.unflatten(1, (layers, queries)).movedim(1, 0)
