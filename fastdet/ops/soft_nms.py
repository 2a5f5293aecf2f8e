# SPDX-License-Identifier: BSD-3-Clause
"""Soft-NMS: lowers the scores of overlapping boxes instead of removing the boxes."""

import math

import torch
from torch import Tensor

from . import library

METHODS = ("linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    method: str = "linear",
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lowers the scores of overlapping boxes instead of removing the boxes.

    Repeat until no box is left: pick the box with the highest score, and multiply the score of
    every other box of its label by a weight that depends on its IoU with the picked box.
    Definition: "Soft-NMS" by Bodla et al. (https://arxiv.org/abs/1704.04503). The weight is:

    - "linear": 1 - IoU if the IoU is at least iou_threshold, else 1.
    - "gaussian": exp(-IoU^2 / sigma).

    A box with a score or a coordinate that is not finite is dropped. Half types are computed in
    float32. There is no gradient. The picks depend on each other, so a GPU runs them one after the
    other in one block: for more than some thousand boxes the CPU is faster.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,), on the same device.
        iou_threshold: in [0, 1]; only for "linear".
        sigma: > 0; only for "gaussian".
        score_threshold: >= 0; a box is removed if its score falls below this.
        method: "linear" or "gaussian".
        labels: (N,) int64; a box lowers only the scores of boxes of its label. None: of all.

    Returns:
        keep, (N,) int64: the indices in the order of picking (ties: the lowest index first), padded
        with -1; the score of each box when it was picked, (N,), in descending order, padded with 0,
        in float64 for float64 boxes, else float32; and the number of picks, () int64. Shapes do not
        depend on values; there is no host sync.

    Raises:
        ValueError: a number outside its range; an unknown method.
        RuntimeError: wrong shape, dtype or device.
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected a number in [0, 1], got {iou_threshold}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: expected a number > 0, got {sigma}")
    if not score_threshold >= 0:
        raise ValueError(f"score_threshold: expected a number >= 0, got {score_threshold}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    return torch.ops.fastdet.soft_nms(
        boxes, scores, labels, iou_threshold, sigma, score_threshold, method
    )


@library.register_fake("fastdet::soft_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    n = boxes.size(0)
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    return (
        boxes.new_empty((n,), dtype=torch.int64),
        boxes.new_empty((n,), dtype=dtype),
        boxes.new_empty((), dtype=torch.int64),
    )
