# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's resize, also to one pixel, where torch fails for uint8 (seen with torch 2.14)."""

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from fastdet.data.transforms.visible import wrapped_like


def resize(inpt: Any, size: Sequence[int]) -> Any:
    """An image, boxes or masks at another size.

    Args:
        inpt: a tv_tensor.
        size: height and width.
    """
    if list(size) == [1, 1] and isinstance(inpt, tv_tensors.Image) and inpt.dtype == torch.uint8:
        return wrapped_like(inpt, functional.resize(inpt.float(), [1, 1]).round().to(torch.uint8))
    return functional.resize(inpt, list(size))
