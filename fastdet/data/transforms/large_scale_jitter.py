# SPDX-License-Identifier: BSD-3-Clause
"""Large-scale jitter (LSJ) on a square canvas, as in Ghiasi et al. 2021, "Simple Copy-Paste".

torchvision's ScaleJitter and RandomCrop. Cost: a resize to up to `high` times the canvas.
"""

from typing import Any

from torchvision import tv_tensors
from torchvision.transforms import v2

from fastdet.data.transforms.canvas import CANVAS_COLOUR
from fastdet.data.transforms.resize import resize
from fastdet.data.transforms.scale_jitter import check_scale


class _ScaleJitter(v2.ScaleJitter):
    """torchvision's, which fails where a side of a long image would have less than one pixel."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = super().make_params(flat_inputs)["size"]
        return {"size": (max(1, height), max(1, width))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return resize(inpt, params["size"])


def large_scale_jitter(scale: tuple[float, float] = (0.1, 2.0), size: int = 1024) -> v2.Transform:
    """A transform that resizes an image by a random factor and cuts a square out of it.

    The factor is uniform; at 1 the longer side of the image is that of the square. Where the image
    is smaller than the square, it lies at a random place of a grey canvas. Takes uint8 images.
    Boxes are cut at the square; those that leave it become empty and are for
    `SanitizeBoundingBoxes` to remove.

    Args:
        scale: range of the factor.
        size: side of the square in pixels.

    Raises:
        ValueError: not 0 < low <= high, or no size.
    """
    check_scale("scale", scale)
    if size < 1:
        raise ValueError(f"size: expected a number of pixels from 1 on, got {size}")
    fill: dict[Any, Any] = {tv_tensors.Image: CANVAS_COLOUR, "others": 0}
    return v2.Compose(
        [_ScaleJitter((size, size), scale), v2.RandomCrop(size, pad_if_needed=True, fill=fill)]
    )
