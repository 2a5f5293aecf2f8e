# SPDX-License-Identifier: BSD-3-Clause
"""Crops masks to boxes: the targets of a mask head."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library
from .output_size import height_and_width


def crop_masks(
    masks: Tensor, boxes: Tensor, match: Tensor, output_size: int | Sequence[int]
) -> Tensor:
    """Crops each box out of its mask and resizes the crop: the share of each bin that is covered.

    Definition: `project_masks_on_boxes` of torchvision's Mask R-CNN, which is `roi_align` of the
    mask with spatial_scale 1, an adaptive grid and aligned=False. Sample positions are computed in
    float64, which is closer to the definition than torchvision: the result differs from it by at
    most 1e-12 for float64 boxes and 1e-5 for float32. Masks are not converted to a floating type.
    Masks without a matching box are not read. There is no gradient.

    Args:
        masks: (B, G, H, W) bool, or uint8 with values 0 and 1 (other values are used as numbers).
        boxes: (B, K, 4) xyxy in pixels, any floating type.
        match: (B, K) int64, index of each box's mask. The result is 0 for a row whose match is
            outside [0, G) or whose box is not finite.
        output_size: bins, (height, width) or one number for both.

    Returns:
        (B, K, height, width) in the dtype of boxes; float64 for float64 boxes, all others are
        computed in float32.

    Raises:
        ValueError: output_size below 1.
        RuntimeError: wrong shape, dtype or device.

    Memory beyond the result: for each thread, 12 bytes for each row and each column of the box.
    """
    height, width = height_and_width(output_size)
    return torch.ops.fastdet.crop_masks(masks, boxes.detach(), match, height, width)


@library.register_fake("fastdet::crop_masks")
def _(masks: Tensor, boxes: Tensor, match: Tensor, height: int, width: int) -> Tensor:
    return boxes.new_empty((*match.shape, height, width))
