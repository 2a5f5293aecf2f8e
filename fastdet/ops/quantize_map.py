# SPDX-License-Identifier: BSD-3-Clause
"""Rounding of maps to 8-bit integers on the CPU."""

import torch
from torch import Tensor

from . import library


def quantize_map(input: Tensor, scale: float, zero_point: int) -> Tensor:
    """round(input / scale) + zero_point, within 0 .. 255: ONNX's QuantizeLinear. No gradient.

    Args:
        input: float32 or bfloat16, of any shape. NaN gives 0.
        scale: above 0, in float32.
        zero_point: in 0 .. 255.

    Returns:
        uint8 of the shape of the input; (B, C, H, W) in channels_last, others contiguous. Ties are
        rounded to the even integer.

    Raises:
        RuntimeError: wrong dtype or device; a scale or a zero_point out of range.
    """
    return torch.ops.fastdet.quantize_map(input, scale, zero_point)


@library.register_fake("fastdet::quantize_map")
def _(input: Tensor, scale: float, zero_point: int) -> Tensor:
    form = torch.channels_last if input.dim() == 4 else torch.contiguous_format
    return torch.empty(input.shape, dtype=torch.uint8, device=input.device, memory_format=form)
