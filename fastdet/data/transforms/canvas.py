# SPDX-License-Identifier: BSD-3-Clause
"""The grey that fills a frame where no picture is."""

import torch
from torch import Tensor
from torchvision import tv_tensors

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


def on_canvas(image: Tensor, top: int, left: int, height: int, width: int) -> tv_tensors.Image:
    """A uint8 image (3, h, w) at a place of a grey canvas; v2's pad takes six times as long."""
    colour = torch.tensor(CANVAS_COLOUR).to(image.dtype)
    canvas = image.new_empty(height, width, 3)
    canvas.view(height, width * 3)[:] = colour.repeat(width)
    canvas[top : top + image.shape[1], left : left + image.shape[2]] = image.permute(1, 2, 0)
    return tv_tensors.Image(canvas.permute(2, 0, 1))
