# SPDX-License-Identifier: BSD-3-Clause
"""3x3 convolutions of 8-bit integers by Winograd's algorithm: on the CPU, stride 1, padding 1.

F(2x2, 3x3) needs 2.25 times fewer products than a direct convolution. Both factors of its products
are rounded to 8 bits: the transformed inputs and the transformed filters. So a result is near that
of the direct convolution, but not the same.
Paper: https://arxiv.org/abs/1509.09308.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import library
from .winograd import ACTIVATIONS, PANEL

POSITIONS = 16  # of the 4x4 inputs of a tile after the transform
UNIT = 1024  # as in C++
WIDEST = 4 * 255  # of a transformed input
RESULTS = (torch.uint8, torch.float32, torch.bfloat16)  # in the order of C++


def winograd_positions(input: Tensor) -> Tensor:
    """The transformed inputs of all tiles of a map: (B, C, H, W) float32 -> (16, numbers)."""
    height, width = input.shape[2:]
    padded = F.pad(input, (1, 1 + width % 2, 1, 1 + height % 2))
    tiles = padded.unfold(2, 4, 2).unfold(3, 4, 2)
    return _of_inputs(_of_inputs(tiles, 4), 5).flatten(4).flatten(0, 3).T


def winograd_roundings_int8(ranges: Tensor, scale: float) -> Tensor:
    """How `winograd_conv_int8` rounds the transformed inputs to bytes.

    Args:
        ranges: (16, 2), of the positions of `winograd_positions`: from <= 0 to >= 0. Of an empty
            range nothing is known: all numbers are rounded as coarsely as some need.
        scale: that of the input.

    Returns:
        (16, 2) int32: a multiplier, which is UNIT by the step, and the byte of 0. No step is below
        1, with which nothing is rounded, or above 8, with which nothing is clipped.
    """
    is_known = ranges[:, :1] < ranges[:, 1:]
    widest = torch.tensor((-WIDEST * scale, WIDEST * scale))
    low, high = torch.where(is_known, ranges, widest).double().unbind(1)
    steps = ((high - low) / 255 / scale).clamp(1, 2 * WIDEST / 255)
    multipliers = (UNIT / steps).round()
    middles = (-low / scale * multipliers / UNIT).round().clamp(0, 255)
    return torch.stack((multipliers, middles), 1).to(torch.int32)


def _of_inputs(tiles: Tensor, dim: int) -> Tensor:
    a, b, c, d = tiles.unbind(dim)
    return torch.stack((a - c, b + c, c - b, b - d), dim)


class Int8Filters(NamedTuple):
    """The transformed filters of a convolution, in the layout of `winograd_conv_int8`.

    Attributes:
        filters: (panels, 16, ceil(C / 4), 32, 4) int8. The output channels are in panels of 32, the
            input channels in groups of 4; both are padded with zeros.
        steps: (16, 32 * panels) float32. Four times a transformed filter is its step times the
            integers.
        sums: (16, 32 * panels) int32, of the integers over the input channels.
    """

    filters: Tensor
    steps: Tensor
    sums: Tensor


def winograd_filters_int8(weight: Tensor) -> Int8Filters:
    """The filters of a convolution for `winograd_conv_int8`, transformed and rounded to 8 bits.

    Each position and output channel has its own step: a 127th of the largest number.

    Args:
        weight: (K, C, 3, 3) int8.
    """
    outputs, inputs = weight.shape[:2]
    four_times = _doubled(_doubled(weight.int(), 2), 3).flatten(2).permute(2, 0, 1)
    four_times = F.pad(four_times, (0, -inputs % 4, 0, -outputs % PANEL)).float()
    steps = four_times.abs().amax(2).clamp(min=1) / 127
    rounded = (four_times / steps[..., None]).round()
    filters = rounded.view(POSITIONS, -1, PANEL, rounded.shape[2] // 4, 4).permute(1, 0, 3, 2, 4)
    sums = rounded.sum(2).to(torch.int32)
    return Int8Filters(filters.to(torch.int8).contiguous(), steps, sums)


def _doubled(weight: Tensor, dim: int) -> Tensor:
    """Twice the transform along a side: so it is in integers. The points are 0, 1, -1, infinity."""
    a, b, c = weight.unbind(dim)
    return torch.stack((2 * a, a + b + c, a - b + c, 2 * c), dim)


def winograd_conv_int8(
    input: Tensor,
    zero_point: int,
    roundings: Tensor,
    filters: Int8Filters,
    scales: Tensor,
    bias: Tensor,
    activation: str,
    dtype: torch.dtype,
    scale: float = 1.0,
    result_zero_point: int = 0,
    summand: Tensor | None = None,
    summand_scale: float = 1.0,
    summand_zero_point: int = 0,
) -> Tensor:
    """A convolution of integers, then adds a summand, applies an activation and rounds once.

    That is activation(scales * F.conv2d(input - zero_point, weight, padding=1) + bias
    + summand_scale * (summand - summand_zero_point)), with the roundings of the algorithm.

    Args:
        input: (B, C, H, W) uint8; a map that is not channels_last is copied first.
        roundings: of the transformed inputs; `winograd_roundings_int8`.
        filters: `winograd_filters_int8` of the weight.
        scales, bias: (K,) float32.
        activation: "none" or "relu".
        dtype: of the result, one of RESULTS.
        scale, result_zero_point: of a result in uint8, which is the activation / scale
            + result_zero_point, rounded, ties to even, within 0 .. 255.
        summand: (B, K, H, W) uint8, or None: add nothing.

    Returns:
        (B, K, H, W) in channels_last. The same for any number of threads.

    Raises:
        RuntimeError: wrong shape, dtype or device, or a number out of range.
    """
    return torch.ops.fastdet.winograd_conv_int8(
        input,
        zero_point,
        roundings,
        *filters,
        scales,
        bias,
        summand,
        summand_scale,
        summand_zero_point,
        ACTIVATIONS.index(activation),
        scale,
        result_zero_point,
        RESULTS.index(dtype),
    )


@library.register_fake("fastdet::winograd_conv_int8")
def _(
    input: Tensor,
    zero_point: int,
    roundings: Tensor,
    filters: Tensor,
    steps: Tensor,
    sums: Tensor,
    scales: Tensor,
    bias: Tensor,
    summand: Tensor | None,
    summand_scale: float,
    summand_zero_point: int,
    activation: int,
    result_scale: float,
    result_zero_point: int,
    result: int,
) -> Tensor:
    shape = input.shape[0], scales.shape[0], *input.shape[2:]
    form = torch.channels_last
    return torch.empty(shape, dtype=RESULTS[result], device=input.device, memory_format=form)
