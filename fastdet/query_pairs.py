# SPDX-License-Identifier: BSD-3-Clause
"""Targets and matches as DETR's matchers give and take them: lists with an item for each image."""

from typing import Any

import torch
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]  # for each image the matched queries, ascending, and their gts


def padded_targets(
    targets: list[dict[str, Any]], labels: str, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The labels (B, G), boxes (B, G, 4) and counts (B,) of the gts, as `match_queries` takes them.

    Args:
        targets: with "boxes", (n, 4), and labels, (n,), for each image.
        labels: the name of the labels in targets.
        like: predicted boxes, with the device of the results and the dtype of the boxes.
    """
    counts = [len(target["boxes"]) for target in targets]
    gt_labels = torch.zeros(len(counts), max(counts), dtype=torch.int64, device=like.device)
    gt_boxes = like.new_zeros(len(counts), max(counts), 4)
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        gt_labels[i, :count] = target[labels]
        gt_boxes[i, :count] = target["boxes"]
    return gt_labels, gt_boxes, torch.tensor(counts, device=like.device)


def pairs_of(index: Tensor) -> Pairs:
    """From the gt of each query, (B, Q), or -1."""
    pairs = []
    for of_image in index:
        queries = (of_image >= 0).nonzero()[:, 0]
        pairs.append((queries, of_image[queries]))
    return pairs
