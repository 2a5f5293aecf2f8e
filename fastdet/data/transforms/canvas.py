# SPDX-License-Identifier: BSD-3-Clause
"""The grey that fills a frame where no picture is."""

import torch
from torch import Tensor

# ImageNet's mean colour, so that the canvas is near zero once the model has normalised it.
CANVAS_COLOUR = [124.0, 116.0, 104.0]


def canvas(like: Tensor, height: int, width: int) -> Tensor:
    """A grey image (3, height, width), plain, of the dtype of an image.

    Args:
        like: an image with values of 0..255 if it is uint8, of 0..1 if it is floating point.
    """
    colour = torch.tensor(CANVAS_COLOUR, device=like.device)
    if like.is_floating_point():
        colour = colour / 255
    return colour.to(like.dtype)[:, None, None].repeat(1, height, width)
