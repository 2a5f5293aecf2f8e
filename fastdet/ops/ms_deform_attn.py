# SPDX-License-Identifier: BSD-3-Clause
"""Multi-scale deformable attention: weighted sums of samples of a feature pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import library


def ms_deform_attn(
    value: Tensor,
    shapes: Sequence[Sequence[int]],
    locations: Tensor,
    weights: Tensor,
    softmax: bool = False,
) -> Tensor:
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159).

    Definition: Deformable DETR's. A sample is what `torch.nn.functional.grid_sample` gives:
    bilinear, `align_corners=False`, zeros outside. A location that is not finite contributes
    nothing. Differentiable once, in value, locations and weights. The gradients are the same in
    every run on the CPU, for any number of threads; on CUDA under
    `torch.use_deterministic_algorithms(True)`. Half types are summed in float32. Memory beyond the
    results: a copy of each argument that is not contiguous, and of locations and weights in a half
    type. In backward on the CPU also S * D sums for each thread; on CUDA for a half type the
    value's gradient in float32, or, if deterministic, the probabilities of a softmax.

    Args:
        value: (B, S, H, D): D channels of H heads, for the S pixels of all levels, one level after
            another, each row by row.
        shapes: (height, width) of each level, at most 8; their pixels are S together.
        locations: (B, Q, H, L, P, 2): P points of each query, head and level, x and y as fractions
            of the level's width and height. Any floating dtype; half types lose digits here.
        weights: (B, Q, H, L, P) of the samples. Any floating dtype.
        softmax: True: weights are logits, and their softmax over the L * P points of a head is
            computed in the same call.

    Returns:
        (B, Q, H * D) in the dtype of value.

    Raises:
        ValueError: shapes that are not pairs of integers.
        RuntimeError: shapes that do not have S pixels; wrong shape, dtype or device.
    """
    heights, widths = _sides(shapes)
    return torch.ops.fastdet.ms_deform_attn(value, heights, widths, locations, weights, softmax)


def _sides(shapes: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """The heights and the widths."""
    if isinstance(shapes, Tensor):
        raise ValueError(
            "shapes: expected a list of (height, width), got a tensor; `shapes.tolist()` is one"
        )
    if any(not isinstance(shape, (tuple, list)) or len(shape) != 2 for shape in shapes):
        raise ValueError(f"shapes: expected a list of (height, width), got {list(shapes)}")
    return [height for height, _ in shapes], [width for _, width in shapes]


@library.register_fake("fastdet::ms_deform_attn")
def _(
    value: Tensor,
    heights: list[int],
    widths: list[int],
    locations: Tensor,
    weights: Tensor,
    softmax: bool,
) -> Tensor:
    return value.new_empty((value.size(0), locations.size(1), value.size(2) * value.size(3)))


@library.register_fake("fastdet::ms_deform_attn_backward")
def _(
    grad: Tensor,
    value: Tensor,
    heights: list[int],
    widths: list[int],
    locations: Tensor,
    weights: Tensor,
    softmax: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.heights, ctx.widths, locations, weights, ctx.softmax = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.fastdet.ms_deform_attn_backward(
        grad,
        value,
        ctx.heights,
        ctx.widths,
        locations,
        weights,
        ctx.softmax,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, None, grad_locations, grad_weights, None


torch.library.register_autograd("fastdet::ms_deform_attn", _backward, setup_context=_setup_context)
library.forbid_second_derivative("fastdet::ms_deform_attn_backward")
