# SPDX-License-Identifier: BSD-3-Clause
"""Greedy non-maximum suppression: of one set of boxes, by group, and of a padded batch."""

import torch
from torch import Tensor

from . import library


def _check_iou_threshold(iou_threshold: float) -> None:
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected a number in [0, 1], got {iou_threshold}")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that survive greedy suppression.

    Definition: `torchvision.ops.nms`. A box with a NaN score or a coordinate that is not finite is
    dropped. Half types are compared in float32.
    On the CPU, O(N) memory beyond the inputs: the order of the scores and the kept boxes by place.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,), on the same device.
        iou_threshold: in [0, 1]; a box is removed when its IoU with a kept one is strictly above.

    Returns:
        (K,) int64, highest score first; ties keep input order. The same on every device.

    Raises:
        ValueError: iou_threshold outside [0, 1].
        RuntimeError: wrong shape, dtype or device.
    """
    _check_iou_threshold(iou_threshold)
    return torch.ops.fastdet.nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes that share an id; boxes of different ids never meet.

    Definition: `torchvision.ops.batched_nms`, but by comparing ids: coordinates are not shifted, so
    the result is that of per-class NMS at any coordinate size and for any id.

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
    """`nms` of each image of a padded batch, with outputs of a fixed shape and no host sync.

    Args:
        boxes: (B, N, 4) xyxy in pixels.
        scores: (B, N).
        iou_threshold: in [0, 1].
        max_keep: the most boxes kept in an image; the best ones are.
        groups: (B, N) int64; boxes of different groups never meet. None: one group.
        counts: (B,) int64; rows of an image from its count on are not read. None: all N count.

    Returns:
        keep, (B, max_keep) int64 indices into N by falling score, padded with -1; and how many
        were kept, (B,) int64.

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
