# SPDX-License-Identifier: BSD-3-Clause
"""The losses of D-FINE's distributions: of the layers of a decoder, for matched queries and others.

Each layer learns the bins next to the ground truth (FGL), and what the last layer believes (DDF).
Definitions: those of the authors' code of https://arxiv.org/abs/2410.13842 and of transformers,
which a test compares.
"""

import torch
from torch import Tensor

from fastdet.models.distribution_boxes import bin_targets
from fastdet.models.losses import widened

TEMPERATURE = 5.0  # of the distributions that are distilled


def localization_losses(
    logits: Tensor, boxes: Tensor, gt_boxes: Tensor, ious: Tensor, moves: Tensor, number: Tensor
) -> Tensor:
    """The fine-grained localization loss (FGL) of each layer.

    Cross entropy with the two bins around the place of each side, weighted by the IoU of the
    layer's box, summed over sides and queries.

    Args:
        logits: (L, B, Q, 4, bins + 1).
        boxes: (B, Q, 4) cxcywh, from which sides move.
        gt_boxes: (B, Q, 4) cxcywh, finite for all queries.
        ious: (L, B, Q) of the layers' boxes with the gts, 0 for a query without a gt.
        moves: see `bin_moves`.
        number: by which the sums are divided.

    Returns:
        (L,).
    """
    lower, share = bin_targets(boxes, gt_boxes, moves)
    bins = torch.stack([lower, lower + 1], dim=-1)  # (B, Q, 4, 2)
    weights = torch.stack([1 - share, share], dim=-1)
    log_scores = widened(logits).log_softmax(dim=-1)
    log_scores = log_scores.gather(-1, bins.expand(len(logits), *bins.shape))
    entropy = -(log_scores * weights).sum(dim=(3, 4))  # (L, B, Q)
    return (entropy * ious).flatten(1).sum(1) / number


def distillation_losses(
    logits: Tensor, class_logits: Tensor, ious: Tensor, matched: Tensor, used: Tensor
) -> Tensor:
    """The decoupled distillation focal loss (DDF) of each layer but the last, their teacher.

    The divergence of a layer's distributions from those of the last layer: the mean over matched
    queries, weighted by the IoU of the layer's box, and that over the others, weighted by the last
    layer's highest class score. The two are weighted by the square roots of their numbers.

    Args:
        logits: (L, B, Q, 4, bins + 1).
        class_logits: (B, Q, C) of the last layer.
        ious: (L, B, Q) of the layers' boxes with the gts.
        matched: (B, Q) bool.
        used: (B, Q) bool; other queries have no loss.

    Returns:
        (L - 1,).
    """
    log_scores = (widened(logits) / TEMPERATURE).log_softmax(dim=-1)
    student, teacher = log_scores[:-1], log_scores[-1].detach()
    divergence = (teacher.exp() * (teacher - student)).sum(dim=(3, 4)) * TEMPERATURE**2
    certain = widened(class_logits).detach().sigmoid().amax(dim=-1)
    divergence = divergence * ious[:-1].where(matched, certain)  # (L - 1, B, Q)
    total, weight = divergence.new_zeros(()), divergence.new_zeros(())
    for rows in (matched & used, ~matched & used):
        number = 4 * rows.sum()  # of distributions
        mean = divergence.where(rows, 0.0).flatten(1).sum(1) / number.clamp(min=1)
        total, weight = total + mean * number.sqrt(), weight + number.sqrt()
    return total / weight.clamp(min=1)
