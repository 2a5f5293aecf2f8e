# SPDX-License-Identifier: BSD-3-Clause
"""Code that the detection operators share: checks of arguments and the shapes of results."""

from collections.abc import Sequence

import torch
from torch import Tensor

# boxes (B, D, 4), scores (B, D), labels (B, D) and counts (B,): the fields of models.Detections.
KeptBoxes = tuple[Tensor, Tensor, Tensor, Tensor]


def head_levels(
    op: str, logits: Sequence[Tensor], deltas: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and deltas, detached and in one common dtype.

    Raises:
        ValueError: the list of levels is empty.
    """
    if not len(logits):
        raise ValueError(f"{op}: expected at least one level, got none")
    dtype = logits[0].dtype
    for level in (*logits, *deltas):
        dtype = torch.promote_types(dtype, level.dtype)
    return [x.detach().to(dtype) for x in logits], [x.detach().to(dtype) for x in deltas]


def check_iou_threshold(op: str, iou_threshold: float) -> None:
    """Raises ValueError unless the threshold is in [0, 1]."""
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold: expected a number in [0, 1], got {iou_threshold}")


def fake_kept_boxes(logits: Tensor, rows: int) -> KeptBoxes:
    """Uninitialised results with `rows` rows for each of the B images of `logits` (B, ...)."""
    images = logits.shape[0]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        logits.new_empty((images, rows, 4), dtype=dtype),
        logits.new_empty((images, rows), dtype=dtype),
        logits.new_empty((images, rows), dtype=torch.int64),
        logits.new_empty((images,), dtype=torch.int64),
    )
