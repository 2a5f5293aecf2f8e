# SPDX-License-Identifier: BSD-3-Clause
"""DETR's matching: which ground-truth box (gt) each query learns."""

import torch
from torch import Tensor

from . import library

KINDS = ("focal", "softmax")


def match_queries(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    cost_class: float = 2,
    cost_bbox: float = 5,
    cost_giou: float = 2,
    alpha: float = 0.25,
    gamma: float = 2,
    kind: str = "focal",
    groups: int = 1,
) -> Tensor:
    """Matches the queries of each image, and of each decoder layer, with its gts one to one.

    The matching has the least total cost. The cost of a query and a gt is

        cost_class * class + cost_bbox * L1(box, gt box) - cost_giou * GIoU(box, gt box)

    where L1 adds the four differences in cxcywh. With p the query's probability for the gt's label,
    the class cost is

    - "focal", as in Deformable DETR, DINO and RT-DETR: p is a sigmoid, and the cost is
      `alpha * (1 - p)^gamma * -log(p + 1e-8) - (1 - alpha) * p^gamma * -log(1 - p + 1e-8)`.
    - "softmax", as in DETR: p is a softmax over all C logits, and the cost is `-p`.

    These are the costs of the matchers of transformers (`RTDetrHungarianMatcher`,
    `HungarianMatcher`). The class costs are computed in float32, or in float64 if an input is
    float64; all else in float64. A cost that is not finite counts as the largest finite one among
    the queries and gts that are matched together, and so does every cost of a label outside
    0 .. C - 1.

    Costs are computed where they are used: on the CPU, for one layer and image at a time in a
    thread's own memory. Nothing waits for the host on CUDA. There is no gradient.

    Args:
        logits: (..., B, Q, C); the leading dimensions are decoder layers.
        boxes: (..., B, Q, 4) centre x, centre y, width, height, in units of the image's sides.
        gt_labels: (B, G) int64 in 0 .. C - 1.
        gt_boxes: (B, G, 4) in the format of boxes.
        gt_counts: (B,) int64; only the first gt_counts[b] gts of image b are read.
        cost_class: weight of the class cost.
        cost_bbox: weight of the L1 distance.
        cost_giou: weight of the generalized IoU.
        alpha: of the focal cost, in [0, 1].
        gamma: of the focal cost, >= 0.
        kind: "focal" or "softmax".
        groups: the queries are that many parts of equal size, and each part is matched with all
            gts by itself, as in the training of Group DETR. A divisor of Q.

    Returns:
        (..., B, Q) int64: the gt of each query, or -1. With more gts than queries, every query has
        a gt. Of queries with equal costs the lowest are matched first.

    Raises:
        ValueError: unknown kind.
        RuntimeError: wrong shape, dtype or device; a number outside its range; groups is no divisor
            of Q.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    return torch.ops.fastdet.match_queries(
        logits.detach(),
        boxes.detach(),
        gt_labels,
        gt_boxes.detach(),
        gt_counts,
        cost_class,
        cost_bbox,
        cost_giou,
        alpha,
        gamma,
        kind,
        groups,
    )


@library.register_fake("fastdet::match_queries")
def _(
    logits: Tensor,
    boxes: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    cost_class: float,
    cost_bbox: float,
    cost_giou: float,
    alpha: float,
    gamma: float,
    kind: str,
    groups: int,
) -> Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.int64)
