# SPDX-License-Identifier: BSD-3-Clause
"""What the detection operators share: their arguments and the shape of their results."""

from collections.abc import Sequence

import torch
from torch import Tensor

# boxes (B, D, 4), scores (B, D), labels (B, D) and counts (B,): the fields of models.Detections.
KeptBoxes = tuple[Tensor, Tensor, Tensor, Tensor]


def head_levels(
    op: str, logits: Sequence[Tensor], deltas: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Both without their gradients and in one dtype.

    Raises:
        ValueError: no level.
    """
    if not len(logits):
        raise ValueError(f"{op}: expected at least one level, got none")
    dtype = logits[0].dtype
    for level in (*logits, *deltas):
        dtype = torch.promote_types(dtype, level.dtype)
    return [x.detach().to(dtype) for x in logits], [x.detach().to(dtype) for x in deltas]


def check_iou_threshold(op: str, iou_threshold: float) -> None:
    """Raises ValueError unless it is an IoU."""
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold: expected a number in [0, 1], got {iou_threshold}")


def fake_kept_boxes(logits: Tensor, rows: int) -> KeptBoxes:
    """Results without values, for the images of `logits` (B, ...)."""
    images = logits.shape[0]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        logits.new_empty((images, rows, 4), dtype=dtype),
        logits.new_empty((images, rows), dtype=dtype),
        logits.new_empty((images, rows), dtype=torch.int64),
        logits.new_empty((images,), dtype=torch.int64),
    )
