# SPDX-License-Identifier: BSD-3-Clause
"""Greedy non-maximum suppression (NMS): for one set of boxes, by group, and for a padded batch."""

import torch
from torch import Tensor

from . import library


def _check_iou_threshold(iou_threshold: float) -> None:
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected a number in [0, 1], got {iou_threshold}")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that survive greedy suppression.

    Definition: `torchvision.ops.nms`. A box with a NaN score or a coordinate that is not finite is
    dropped. Half types are compared in float32. Memory on the CPU beyond the inputs: O(N), for the
    order of the scores and a grid of the kept boxes.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,), on the same device.
        iou_threshold: in [0, 1]; a box is suppressed if its IoU with a kept box is above this.

    Returns:
        (K,) int64, highest score first; ties keep input order. The same on every device.

    Raises:
        ValueError: iou_threshold outside [0, 1].
        RuntimeError: wrong shape, dtype or device.
    """
    _check_iou_threshold(iou_threshold)
    return torch.ops.fastdet.nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` for each id separately: a box suppresses only boxes with the same id.

    Definition: `torchvision.ops.batched_nms`, but ids are compared and coordinates are not shifted.
    So the result equals NMS per id for coordinates and ids of any size.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,).
        idxs: (N,) int64 ids, of classes or levels for example.
        iou_threshold: in [0, 1].

    Returns:
        (K,) int64 over all ids, highest score first; ties keep input order.

    Raises:
        ValueError: iou_threshold outside [0, 1].
        RuntimeError: wrong shape, dtype or device.
    """
    _check_iou_threshold(iou_threshold)
    return torch.ops.fastdet.batched_nms(boxes, scores, idxs, iou_threshold)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_keep: int,
    groups: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`nms` for each image of a padded batch. Outputs have a fixed shape; there is no host sync.

    Args:
        boxes: (B, N, 4) xyxy in pixels.
        scores: (B, N).
        iou_threshold: in [0, 1].
        max_keep: maximum number of boxes to keep in an image; those with the highest scores.
        groups: (B, N) int64; a box suppresses only boxes of its group. None: one group.
        counts: (B,) int64; only the first counts[b] rows of image b are read. None: all N rows.

    Returns:
        keep, (B, max_keep) int64 indices into N, highest score first, padded with -1; and the
        number of kept boxes, (B,) int64.

    Raises:
        ValueError: iou_threshold outside [0, 1].
        RuntimeError: wrong shape, dtype or device; max_keep below 0.
    """
    _check_iou_threshold(iou_threshold)
    return torch.ops.fastdet.nms_padded(boxes, scores, iou_threshold, max_keep, groups, counts)


def _fake_dynamic(boxes: Tensor) -> Tensor:
    num_kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((num_kept,), dtype=torch.int64)


@library.register_fake("fastdet::nms")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _fake_dynamic(boxes)


@library.register_fake("fastdet::batched_nms")
def _(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _fake_dynamic(boxes)


@library.register_fake("fastdet::nms_padded")
def _(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_keep: int,
    groups: Tensor | None,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    num_images = boxes.size(0)
    return (
        boxes.new_empty((num_images, max_keep), dtype=torch.int64),
        boxes.new_empty((num_images,), dtype=torch.int64),
    )
