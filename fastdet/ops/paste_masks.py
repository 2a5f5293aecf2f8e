# SPDX-License-Identifier: BSD-3-Clause
"""Masks of boxes as masks of their images."""

import torch
from torch import Tensor

from . import library


def check_threshold(threshold: float) -> None:
    """Raises ValueError for a threshold that the zeros outside a box would be above, or NaN."""
    if not threshold >= 0:
        raise ValueError(f"threshold: expected a number >= 0, got {threshold}")


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float | None = 0.5
) -> Tensor:
    """Each mask stretched over its box in an image of zeros.

    Definition: `paste_masks_in_image` of torchvision's Mask R-CNN, without its channel: the mask
    gets a border of zeros, its box grows by as much and is cut to whole pixels, and the mask is
    stretched over it bilinearly. Computed in float32 (float64 for float64 masks) in the order that
    mask_paste.h fixes, equal to torchvision's to 1e-5 (1e-12); a pixel is True on every device or
    on none. With a threshold no image of probabilities is ever made. There is no gradient.

    Args:
        masks: (N, h, w) probabilities, of any floating type.
        boxes: (N, 4) xyxy in pixels. One that is not finite, or lies 2**30 pixels away, shows
            nothing.
        size: (height, width) of the image.
        threshold: what a pixel's probability is above, >= 0; None for the probabilities.

    Returns:
        (N, height, width) bool, or in the dtype of masks where threshold is None.

    Raises:
        ValueError: threshold below 0.
        RuntimeError: wrong shape, dtype or device.
    """
    if threshold is not None:
        check_threshold(threshold)
    height, width = size
    return torch.ops.fastdet.paste_masks(masks.detach(), boxes.detach(), height, width, threshold)


@library.register_fake("fastdet::paste_masks")
def _(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float | None) -> Tensor:
    dtype = masks.dtype if threshold is None else torch.bool
    return masks.new_empty((masks.size(0), height, width), dtype=dtype)
