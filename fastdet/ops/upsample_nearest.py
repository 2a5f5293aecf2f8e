# SPDX-License-Identifier: BSD-3-Clause
"""Nearest-neighbour resize of channels_last maps on the CPU."""

import torch
from torch import Tensor

from . import library


def upsample_nearest(input: Tensor, height: int, width: int) -> Tensor:
    """`F.interpolate(input, (height, width), mode="nearest")`, bit for bit. There is no gradient.

    Args:
        input: (B, C, H, W) of a floating type, H and W above 0. A map that is not channels_last is
            copied first.
        height, width: in 1 .. 2^24.

    Returns:
        (B, C, height, width) in the dtype of the input, channels_last; never a view.

    Raises:
        RuntimeError: wrong shape, dtype or device; a size outside 1 .. 2^24.
    """
    return torch.ops.fastdet.upsample_nearest(input, height, width)


@library.register_fake("fastdet::upsample_nearest")
def _(input: Tensor, height: int, width: int) -> Tensor:
    shape = (*input.shape[:2], height, width)
    options = {"dtype": input.dtype, "device": input.device}
    return torch.empty(shape, **options, memory_format=torch.channels_last)
