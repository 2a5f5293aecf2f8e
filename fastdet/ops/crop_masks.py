# SPDX-License-Identifier: BSD-3-Clause
"""Masks cropped to boxes: the targets of a mask head."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library
from .output_size import height_and_width


def crop_masks(
    masks: Tensor, boxes: Tensor, match: Tensor, output_size: int | Sequence[int]
) -> Tensor:
    """How much of each bin of each box the box's mask covers.

    Definition: `project_masks_on_boxes` of torchvision's Mask R-CNN, which is `roi_align` of the
    mask with spatial_scale 1 and an adaptive grid, aligned=False. Samples are placed in float64, so
    that the result is closer to the definition than torchvision's: equal to 1e-12 for float64 boxes
    and to 1e-5 for float32. No mask is ever converted to a floating type, and masks that nothing
    matches are not read. There is no gradient.

    Args:
        masks: (B, G, H, W) bool, or uint8 of 0 and 1 (other numbers count as such).
        boxes: (B, K, 4) xyxy in pixels, any floating type.
        match: (B, K) int64, the mask of each box; a row whose match is not in [0, G) is 0, as is
            one whose box is not finite.
        output_size: bins, (height, width) or one number for both.

    Returns:
        (B, K, height, width) in the dtype of boxes, computed in float32 (float64 for float64).

    Raises:
        ValueError: output_size below 1.
        RuntimeError: wrong shape, dtype or device.

    Memory beyond the result: 12 bytes for each row and column of the box, a thread.
    """
    height, width = height_and_width(output_size)
    return torch.ops.fastdet.crop_masks(masks, boxes.detach(), match, height, width)


@library.register_fake("fastdet::crop_masks")
def _(masks: Tensor, boxes: Tensor, match: Tensor, height: int, width: int) -> Tensor:
    return boxes.new_empty((*match.shape, height, width))
