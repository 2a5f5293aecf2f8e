# SPDX-License-Identifier: BSD-3-Clause
"""Deformable convolution: each tap of the kernel reads the input at a place of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import library
from .roi_align import empty_features, is_channels_last


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution, v1 (https://arxiv.org/abs/1703.06211), with a mask v2 (1811.11168).

    Definition: `torchvision.ops.deform_conv2d`. A tap of the kernel reads a bilinear sample of the
    input at its place plus the offset; pixels outside are 0. A tap whose offset is NaN or infinite
    contributes nothing. Differentiable once, in all tensors. The gradients are the same in every
    run on the CPU, for any number of threads; on CUDA under
    `torch.use_deterministic_algorithms(True)`. Half types are summed in float32. Under autocast
    nothing is cast: the tensors may differ in their dtypes.

    Memory beyond the results: a copy of the weight, of the input unless it is channels_last in
    float32 or float64, and of each other tensor that is not contiguous or in a half type; in
    backward the gradients of input and weight once more, and on CUDA a copy of that of the output.
    The sampled columns are never in memory as a whole: on the CPU they take up to 0.5 MB for each
    thread, and 8 MB in backward (twice as much in float64); on CUDA up to 128 MB.

    Args:
        input: (B, C, H, W), NCHW or channels_last.
        offset: (B, 2 * D * kernel height * kernel width, output height, output width) in pixels,
            y before x for each tap. D offset groups share the channels evenly.
        weight: (O, C / groups, kernel height, kernel width). The shape gives the groups.
        bias: (O,).
        stride: pixels between output positions: one number, or two for height and width.
        padding: pixels of zeros around the input.
        dilation: pixels between the taps of the kernel.
        mask: (B, D * kernel height * kernel width, output height, output width): a factor for each
            sample. None: 1.

    Returns:
        (B, O, output height, output width) in the dtype and memory layout of `input`.

    Raises:
        ValueError: a stride, padding or dilation that is not one number or two.
        RuntimeError: wrong shape, dtype or device; an output without positions.
    """
    return torch.ops.fastdet.deform_conv2d(
        input,
        offset,
        weight,
        bias,
        mask,
        _pair("stride", stride),
        _pair("padding", padding),
        _pair("dilation", dilation),
    )


def _pair(name: str, numbers: int | Sequence[int]) -> list[int]:
    """For height and width."""
    pair = [numbers] * 2 if isinstance(numbers, int) else list(numbers)
    if len(pair) != 2:
        raise ValueError(f"{name}: expected one number, or two for height and width, got {numbers}")
    return pair


@library.register_fake("fastdet::deform_conv2d")
def _(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    sizes = (input.size(0), weight.size(0), offset.size(2), offset.size(3))
    return empty_features(input, sizes, is_channels_last(input))


@library.register_fake("fastdet::deform_conv2d_backward")
def _(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sums = torch.float64 if input.dtype == torch.float64 else torch.float32
    return (
        empty_features(input, input.shape, is_channels_last(input)),
        offset.new_empty(offset.shape),
        weight.new_empty(weight.shape),
        input.new_empty(0, dtype=sums) if mask is None else mask.new_empty(mask.shape),
        weight.new_empty(weight.size(0), dtype=sums),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, bias, mask, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    of_input, of_offset, of_weight, of_mask, of_bias = torch.ops.fastdet.deform_conv2d_backward(
        grad,
        input,
        offset,
        weight,
        mask,
        ctx.stride,
        ctx.padding,
        ctx.dilation,
        torch.are_deterministic_algorithms_enabled(),
    )
    return (
        of_input,
        of_offset,
        of_weight,
        None if ctx.bias_dtype is None else of_bias.to(ctx.bias_dtype),
        None if mask is None else of_mask,
        None,
        None,
        None,
    )


torch.library.register_autograd("fastdet::deform_conv2d", _backward, setup_context=_setup_context)
library.forbid_second_derivative("fastdet::deform_conv2d_backward")
