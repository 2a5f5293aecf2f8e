# SPDX-License-Identifier: BSD-3-Clause
"""Pastes the masks of boxes into images."""

import torch
from torch import Tensor

from . import library


def check_threshold(threshold: float) -> None:
    """Raises ValueError for NaN or a negative threshold: pixels outside a box would be True."""
    if not threshold >= 0:
        raise ValueError(f"threshold: expected a number >= 0, got {threshold}")


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float | None = 0.5
) -> Tensor:
    """Resizes each mask to its box and pastes it into an image of zeros.

    Definition: `paste_masks_in_image` of torchvision's Mask R-CNN, without the channel dimension.
    The mask is padded by one pixel of zeros on each side. The box grows in the same proportion, and
    its corners are truncated to integers. The mask is resized to the box bilinearly. Computed in
    float32 (float64 for float64 masks), in the order of operations that mask_paste.h fixes, so a
    boolean result is the same on every device. It equals torchvision's to 1e-5 (1e-12 for float64).
    With a threshold, the probabilities of the image are never stored. There is no gradient.

    Args:
        masks: (N, h, w) probabilities, of any floating type.
        boxes: (N, 4) xyxy in pixels. A box that is not finite, or has a corner 2**30 pixels away,
            gives an empty mask.
        size: (height, width) of the image.
        threshold: >= 0; a pixel is True if its probability is above this. None: return the
            probabilities.

    Returns:
        (N, height, width) bool, or the dtype of masks if threshold is None.

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
