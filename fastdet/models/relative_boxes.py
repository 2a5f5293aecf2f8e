# SPDX-License-Identifier: BSD-3-Clause
"""Boxes as DETRs predict them: centre x, centre y, width, height, in fractions of an image's sides.

A side of an image is that of the image itself, without its padding (`Batch.sizes`), unless a family
gives other sizes.
"""

import torch
from torch import Tensor


def relative_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, N, 4) xyxy in pixels -> (B, N, 4) cxcywh in fractions of `sizes` (B, 2).

    Args:
        boxes: rows beyond a count may have any finite values.
        sizes: height and width of each image.
    """
    return centred(boxes / _xyxy_sides(sizes, boxes))


def absolute_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, N, 4) cxcywh in fractions of `sizes` (B, 2) -> (B, N, 4) xyxy in pixels."""
    return corners(boxes) * _xyxy_sides(sizes, boxes)


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) cxcywh -> (..., 4) xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def centred(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy -> (..., 4) cxcywh."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def inverse_sigmoid(values: Tensor, eps: float = 1e-5) -> Tensor:
    """The logits of fractions; of a fraction below eps or above 1 - eps those of that bound."""
    return values.clamp(min=eps).log() - (1 - values).clamp(min=eps).log()


def _xyxy_sides(sizes: Tensor, boxes: Tensor) -> Tensor:
    """(B, 1, 4): width, height, width, height."""
    return sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
