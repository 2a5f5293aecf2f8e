# SPDX-License-Identifier: BSD-3-Clause
"""Max pooling of channels_last maps on the CPU, with a gradient that needs one byte for a value.

torch keeps the input and an index of 8 bytes for each output, and its kernel for bfloat16 is slow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import library


def max_pool2d(
    input: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """`F.max_pool2d(input, kernel, stride, padding)`, bit for bit, and its gradient.

    Args:
        input: (B, C, H, W) float32 or bfloat16, or uint8 without a gradient, not smaller than the
            kernel. A map that is not channels_last is copied first.
        kernel, stride, padding: of rows and columns. A window has at most 256 places; the padding
            is at most half of the kernel.

    Returns:
        (B, C, H', W') in the dtype of the input, channels_last. The gradient goes to the first of
        equal values, and to the last NaN, as in torch. It is the same for any number of threads.
        In bfloat16, the gradients of the windows of a pixel are summed in float32 and rounded once.

    Raises:
        RuntimeError: wrong shape, dtype or device; numbers out of range.
    """
    geometry = list(kernel), list(stride), list(padding)
    if torch.is_grad_enabled() and input.requires_grad:
        return torch.ops.fastdet.max_pool2d_with_argmax(input, *geometry)[0]
    return torch.ops.fastdet.max_pool2d(input, *geometry)


def _pooled(input: Tensor, *geometry: Sequence[int]) -> list[int]:
    sides = zip(input.shape[2:], *geometry, strict=True)
    pooled = ((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in sides)
    return [*input.shape[:2], *pooled]


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    options = {"dtype": dtype, "device": like.device}
    return torch.empty(shape, **options, memory_format=torch.channels_last)


@library.register_fake("fastdet::max_pool2d")
def _(
    input: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return _empty(_pooled(input, kernel, stride, padding), input, input.dtype)


@library.register_fake("fastdet::max_pool2d_with_argmax")
def _(
    input: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor]:
    shape = _pooled(input, kernel, stride, padding)
    return _empty(shape, input, input.dtype), _empty(shape, input, torch.uint8)


@library.register_fake("fastdet::max_pool2d_backward")
def _(
    grad: Tensor,
    argmax: Tensor,
    height: int,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    return _empty((*grad.shape[:2], height, width), grad, grad.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, *ctx.geometry = inputs
    ctx.size = input.shape[2:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _gradient(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None, None, None]:
    if grad is None:
        return None, None, None, None
    (argmax,) = ctx.saved_tensors
    found = torch.ops.fastdet.max_pool2d_backward(grad, argmax, *ctx.size, *ctx.geometry)
    return found, None, None, None


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, argmax, height, width, *ctx.geometry = inputs
    ctx.size = height, width
    ctx.save_for_backward(argmax)


def _second(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Backward is a selection: its own gradient is that of the pixels that forward chose."""
    (argmax,) = ctx.saved_tensors
    chosen = _chosen(argmax, ctx.size, *ctx.geometry)
    found = grad.flatten(2).gather(2, chosen.flatten(2)).reshape(argmax.shape)
    return found, None, None, None, None, None, None


def _chosen(
    argmax: Tensor,
    size: tuple[int, int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """torch's indices: the pixel y * W + x that each window chose, int64 (B, C, H', W')."""
    place, (height, width) = argmax.long(), argmax.shape[2:]
    top = torch.arange(height, device=argmax.device)[:, None] * stride[0] - padding[0]
    left = torch.arange(width, device=argmax.device) * stride[1] - padding[1]
    return (top + place // kernel[1]) * size[1] + left + place % kernel[1]


torch.library.register_autograd("fastdet::max_pool2d_with_argmax", _gradient, setup_context=_save)
torch.library.register_autograd(
    "fastdet::max_pool2d_backward", _second, setup_context=_save_for_second
)
