# SPDX-License-Identifier: BSD-3-Clause
"""The box head of a Faster R-CNN in training on the CPU, with the gradients of few RoIs at a time.

RoIAlign's output has 12,544 numbers for each RoI, and so has its gradient: 49 MiB each for 1,024
RoIs, when backward needs most memory. Here RoIAlign and the linear layer after it are one function.
Backward computes the gradient of the weight, and frees the pooled maps. Then it takes some RoIs at
a time: it computes the gradient of their pooled maps and adds it to the gradients of the levels.
Gradients differ from those of the layers only by rounding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastdet.engine.linear import product, weight_grad
from fastdet.engine.winograd import is_plain
from fastdet.ops import multiscale_roi_align
from fastdet.ops.roi_align import add_multiscale_grad
from fastdet.ops.tracing import is_eager

ROWS = 512  # RoIs of an image at a time; with fewer, their products take longer
# Their layers: `fc6` and `fc7`, each with a ReLU.
BOX_HEADS = (
    "fastdet.models.roi_heads.TwoMLPHead",
    "torchvision.models.detection.faster_rcnn.TwoMLPHead",
)


class PooledHead(NamedTuple):
    """The linear layers of a head; a ReLU follows each of them."""

    first: nn.Linear
    second: nn.Linear


def pooled_head(head: nn.Module, levels: Sequence[Tensor]) -> PooledHead | None:
    """The layers of a head for `run_pooled_head`; None if it does not fit.

    Args:
        head: any module without hooks.
        levels: maps (B, C, H_l, W_l) to pool from.
    """
    kind = type(head)
    if f"{kind.__module__}.{kind.__qualname__}" not in BOX_HEADS or not torch.is_grad_enabled():
        return None
    layers: Any = head.fc6, head.fc7
    fits = (
        all(map(_is_usual_map, levels))
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and all(type(layer) is nn.Linear for layer in layers)
        and is_plain(layers[0].weight)
        and is_plain(layers[0].bias)
    )
    return PooledHead(*layers) if fits else None


def run_pooled_head(
    head: PooledHead,
    levels: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor,
    pooling: Sequence[Any],
) -> Tensor:
    """The hidden features (B K, outputs) of all RoIs, padding included.

    Args:
        head: from `pooled_head`.
        levels, boxes, counts: see `multiscale_roi_align`.
        pooling: its further arguments.
    """
    weight, bias = head.first.weight, head.first.bias
    first = _PooledLinear.apply(tuple(pooling), boxes, counts, weight, bias, *levels)
    return F.relu(head.second(F.relu(first)))


class _PooledLinear(torch.autograd.Function):
    """A linear layer of the pooled maps; gradients of its weight, its bias and the levels."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.pooling, boxes, counts, weight, bias, *levels = args
        ctx.sizes = [level.shape for level in levels]
        rows = multiscale_roi_align(levels, boxes, counts, *ctx.pooling).flatten(0, 1).flatten(1)
        ctx.save_for_backward(boxes, counts, weight, rows if weight.requires_grad else None)
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grads[0].contiguous()  # (B K, outputs)
        boxes, counts, weight, rows = ctx.saved_tensors
        needs_weight, needs_bias, *needs_levels = ctx.needs_input_grad[3:]
        of_weight = weight_grad(grad, rows) if needs_weight else None
        of_bias = grad.sum(0) if needs_bias else None
        # What follows can take the memory of the pooled maps, which nothing else may need now.
        del rows
        ctx.maybe_clear_saved_tensors()
        of_levels: list[Tensor | None] = [None] * len(ctx.sizes)
        if any(needs_levels):
            sums = _level_grads(grad, weight, boxes, counts, ctx.pooling, ctx.sizes)
            of_levels = [x if need else None for x, need in zip(sums, needs_levels, strict=True)]
        return None, None, None, of_weight, of_bias, *of_levels


def _level_grads(
    grad: Tensor,
    weight: Tensor,
    boxes: Tensor,
    counts: Tensor,
    pooling: Sequence[Any],
    sizes: Sequence[torch.Size],
) -> list[Tensor]:
    """The gradients of all levels from that of the layer's outputs, (B K, outputs)."""
    (height, width), *how = pooling
    channels = sizes[0][1]
    # No views: autograd can add the gradients of other readers to these in place.
    layout = torch.channels_last
    sums = [torch.empty(size, memory_format=layout, dtype=grad.dtype).zero_() for size in sizes]
    of_images = grad.unflatten(0, boxes.shape[:2])
    for image, of_image in enumerate(of_images):
        one = slice(image, image + 1)
        of_levels = [x[one] for x in sums]
        for first in range(0, len(of_image), ROWS):
            rows = slice(first, first + ROWS)
            pooled = product(of_image[rows], weight.t()).view(1, -1, channels, height, width)
            add_multiscale_grad(of_levels, pooled, boxes[one, rows], counts[one] - first, *how)
            del pooled  # before the next rows are computed
    return sums


def _is_usual_map(x: Tensor) -> bool:
    return (
        is_eager(x)
        and is_plain(x)
        and x.shape[1] > 1
        and x.is_contiguous(memory_format=torch.channels_last)
    )
