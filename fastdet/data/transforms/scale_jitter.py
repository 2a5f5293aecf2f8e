# SPDX-License-Identifier: BSD-3-Clause
"""Scale jitter that keeps the size of the image.

A detector resizes every image to its own min_size, so a jitter that changed the image's size would
be undone there. `ScaleJitter` therefore keeps the size and changes what the frame shows: objects
come closer (a random crop, enlarged) or go away (the image shrunk onto a grey canvas). That is
large-scale jittering (Ghiasi et al. 2021, "Simple Copy-Paste") with the image's own size as canvas.
Cost: one resize of the uint8 image, about 1 ms at 640x480.
"""

import math
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from fastdet.data.transforms.canvas import on_canvas
from fastdet.data.transforms.resize import resize


def check_scale(name: str, scale: tuple[float, float]) -> None:
    """Raises ValueError unless it is a range of factors."""
    if not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {scale}")


class ScaleJitter(v2.Transform):
    """Scales the contents of an image by a random factor; image size and aspect ratio stay.

    A factor above 1 shows a random part of the image, enlarged; below 1, the whole image at a
    random place of a grey canvas. The factor is log-uniform, so both ways are as likely for a
    range like (0.8, 1.25). Takes uint8 images. Boxes are cut at the frame; those that leave it
    become empty and are for `SanitizeBoundingBoxes` to remove.
    """

    def __init__(self, scale: tuple[float, float] = (0.8, 1.25)) -> None:
        """Takes the range of the factor.

        Raises:
            ValueError: not 0 < low <= high.
        """
        super().__init__()
        check_scale("scale", scale)
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the factor and the place."""
        height, width = v2.query_size(flat_inputs)
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        factor = math.exp(low + (high - low) * torch.rand(()).item())
        ratio = factor if factor < 1 else 1 / factor
        inner = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        top = int(torch.randint(height - inner[0] + 1, ()))
        left = int(torch.randint(width - inner[1] + 1, ()))
        return {"zoom_in": factor >= 1, "size": (height, width), "frame": (top, left, *inner)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crops and enlarges, or shrinks and pads."""
        height, width = params["size"]
        top, left, inner_height, inner_width = params["frame"]
        if (inner_height, inner_width) == (height, width):
            return inpt
        if params["zoom_in"]:
            return self._call_kernel(
                functional.resized_crop,
                inpt,
                top,
                left,
                inner_height,
                inner_width,
                size=[height, width],
            )
        inpt = resize(inpt, [inner_height, inner_width])
        if isinstance(inpt, tv_tensors.Image):
            return on_canvas(inpt, top, left, height, width)
        padding = [left, top, width - inner_width - left, height - inner_height - top]
        return self._call_kernel(functional.pad, inpt, padding)
