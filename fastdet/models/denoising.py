# SPDX-License-Identifier: BSD-3-Clause
"""Contrastive denoising: further queries that know a disturbed ground-truth box and learn it.

Paper: https://arxiv.org/abs/2203.03605 (DINO), as RT-DETR uses it. Each query has a known match, so
that boxes are learned from the first step on, while the matching of the other queries still
changes. A positive query is moved by less than half of its box's sides and learns the box. A
negative one is moved further and learns that it has no object.

There are always the same number of queries: the images' ground truths take turns in filling them.
A turn is a group, whose queries see each other and no others. Nothing waits for the GPU, and the
number of padded rows of the ground truth changes nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdet.models.batch import Batch
from fastdet.models.losses import widened
from fastdet.models.relative_boxes import centred, corners
from fastdet.models.set_losses import set_targets
from fastdet.ops.padded_rows import take_rows

FAR = 1e4  # a logit whose sigmoid is 1; finite, as some runtimes need all numbers to be


class Denoising(NamedTuple):
    """The denoising queries of a batch; N is twice the number of positive ones.

    Attributes:
        labels: (B, N) int64, disturbed; 0 for a query that is not used.
        boxes: (B, N, 4) cxcywh as shares of the image, disturbed.
        match: (B, N) the ground truth that a query learns, or -1.
        used: (B, N) bool; the others have no loss.
        groups: (B, N) int64, the group of a query.
    """

    labels: Tensor
    boxes: Tensor
    match: Tensor
    used: Tensor
    groups: Tensor


class DenoisingOptions(NamedTuple):
    """How many denoising queries there are, and how they are disturbed.

    Attributes:
        queries: number of positive queries, and that of negative ones; 0: no denoising.
        label_noise: half of this share of the labels is replaced by random ones.
        box_noise: the largest shift of a side of a positive query, as a share of half the box.
    """

    queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0


def check_denoising(options: DenoisingOptions) -> None:
    """Raises ValueError if the number of queries is negative."""
    if options.queries < 0:
        raise ValueError(f"denoising: expected a number from 0 on, got {options.queries}")


def denoising_of(batch: Batch, num_classes: int, options: DenoisingOptions) -> Denoising:
    """The denoising queries of a batch; see `denoising_queries`."""
    targets = set_targets(batch, first_label=0)
    gts = targets.boxes, targets.labels, targets.counts
    return denoising_queries(*gts, num_classes, options)


def denoising_queries(
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_counts: Tensor,
    num_classes: int,
    options: DenoisingOptions,
) -> Denoising:
    """Disturbed ground truths, positive ones first.

    Args:
        gt_boxes: (B, G, 4) cxcywh as shares of the image.
        gt_labels: (B, G) int64, 1 .. num_classes - 1.
        gt_counts: (B,) int64. Of an image with more boxes than queries the first ones are learned.
        num_classes: with background.
        options: see there.

    Returns:
        2 * options.queries for each image.
    """
    number = options.queries
    counts = gt_counts.clamp(min=1)[:, None]  # (B, 1)
    turn = torch.arange(number, device=gt_boxes.device)  # (N / 2,)
    gts, groups = turn % counts, turn // counts  # (B, N / 2)
    # A group is whole, except the only one of an image with more boxes than queries.
    whole = (groups + 1) * counts <= number
    used = (whole | (groups == 0)) & (gt_counts[:, None] > 0)
    labels = take_rows(gt_labels, gts).where(used, 0)
    centre = torch.full_like(gt_boxes[:1, :1], 0.5)
    boxes = take_rows(gt_boxes, gts).where(used[..., None], centre)
    labels, boxes, used, groups = (torch.cat([x, x], dim=1) for x in (labels, boxes, used, groups))
    match = torch.cat([gts, torch.full_like(gts, -1)], dim=1).where(used, -1)
    return Denoising(
        _other_labels(labels, num_classes, options.label_noise).where(used, 0),
        _moved(boxes, options.box_noise),
        match,
        used,
        groups,
    )


def attention_mask(denoising: Denoising, queries: int) -> Tensor:
    """Which query sees which: (B, 1, N + queries, N + queries) bool.

    A denoising query sees its group and the other queries; those see only each other. So what is
    learned without ground truth does not depend on it.

    Args:
        denoising: N queries; they come first.
        queries: number of the others.
    """
    groups = nn.functional.pad(denoising.groups, (0, queries), value=-1)  # (B, T)
    same = groups[:, :, None] == groups[:, None]
    seen_by_all = (groups == -1)[:, None]
    return (same | seen_by_all)[:, None]


def of_used_queries(logits: Tensor, denoising: Denoising) -> Tensor:
    """Logits (L, B, N, C); a query that is not used is sure of no object, and learns nothing."""
    return widened(logits).where(denoising.used[..., None], -FAR)


def _other_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    """Half of the share `noise` of the labels is drawn anew."""
    drawn = torch.rand(labels.shape, device=labels.device) < 0.5 * noise
    others = torch.randint(1, num_classes, labels.shape, device=labels.device)
    return others.where(drawn, labels)


def _moved(boxes: Tensor, noise: float) -> Tensor:
    """Moves the sides of boxes cxcywh, of the second half of them further than of the first."""
    half = 0.5 * noise * boxes[..., 2:].repeat(1, 1, 2)  # (B, N, 4)
    shares = torch.rand(boxes.shape, dtype=boxes.dtype, device=boxes.device)
    signs = torch.rand(boxes.shape, device=boxes.device).round() * 2 - 1
    negative = torch.arange(boxes.shape[1], device=boxes.device) >= boxes.shape[1] // 2
    shares = shares + negative[:, None]
    return centred((corners(boxes) + signs * shares * half).clamp(0, 1))
