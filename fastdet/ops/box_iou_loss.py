# SPDX-License-Identifier: BSD-3-Clause
"""Losses for box regression, row by row: 1 - GIoU, 1 - DIoU and 1 - CIoU."""

from typing import Any

import torch
from torch import Tensor

from . import library
from .box_iou import check_eps, result_dtype
from .reduction import reduce


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """1 - generalized IoU of row i of boxes1 and row i of boxes2.

    Definition: `torchvision.ops.generalized_box_iou_loss` (https://arxiv.org/abs/1902.09630), but a
    term whose denominator is not positive before eps is added is 0. Differentiable once, in both
    arguments. Half types are computed and returned in float32.

    Args:
        boxes1: (..., 4) xyxy in pixels.
        boxes2: (..., 4), the same shape, on the same device.
        reduction: "none", "mean" or "sum".
        eps: added to the area of the union and of the enclosing box.

    Returns:
        (...) for "none", else one number; float64 if either argument is float64, else float32. The
        mean of no rows is 0.

    Raises:
        ValueError: unknown reduction; eps negative or not finite.
        RuntimeError: wrong shape, dtype or device.
    """
    check_eps(eps)
    return reduce(torch.ops.fastdet.box_iou_loss(boxes1, boxes2, eps, "generalized"), reduction)


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """1 - distance IoU of row i of boxes1 and row i of boxes2.

    Definition: `torchvision.ops.distance_box_iou_loss` (https://arxiv.org/abs/1911.08287), but a
    term whose denominator is not positive before eps is added is 0. Differentiable once, in both
    arguments. Half types are computed and returned in float32.

    Args:
        boxes1: (..., 4) xyxy in pixels.
        boxes2: (..., 4), the same shape, on the same device.
        reduction: "none", "mean" or "sum".
        eps: added to the area of the union and to the enclosing box's squared diagonal.

    Returns:
        (...) for "none", else one number; float64 if either argument is float64, else float32. The
        mean of no rows is 0.

    Raises:
        ValueError: unknown reduction; eps negative or not finite.
        RuntimeError: wrong shape, dtype or device.
    """
    check_eps(eps)
    return reduce(torch.ops.fastdet.box_iou_loss(boxes1, boxes2, eps, "distance"), reduction)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """1 - complete IoU of row i of boxes1 and row i of boxes2.

    Definition: `torchvision.ops.complete_box_iou_loss` (https://arxiv.org/abs/1911.08287), but a
    term whose denominator is not positive before eps is added is 0. Differentiable once, in both
    arguments. The weight of the aspect term is a constant in the gradient. Half types are computed
    and returned in float32.

    Args:
        boxes1: (..., 4) xyxy in pixels.
        boxes2: (..., 4), the same shape, on the same device.
        reduction: "none", "mean" or "sum".
        eps: added to the denominator of the aspect term's weight. The other terms use 1e-7, as in
            torchvision.

    Returns:
        (...) for "none", else one number; float64 if either argument is float64, else float32. The
        mean of no rows is 0.

    Raises:
        ValueError: unknown reduction; eps negative or not finite.
        RuntimeError: wrong shape, dtype or device.
    """
    check_eps(eps)
    return reduce(torch.ops.fastdet.box_iou_loss(boxes1, boxes2, eps, "complete"), reduction)


@library.register_fake("fastdet::box_iou_loss")
def _(boxes1: Tensor, boxes2: Tensor, eps: float, kind: str) -> Tensor:
    return boxes1.new_empty(boxes1.shape[:-1], dtype=result_dtype(boxes1, boxes2))


@library.register_fake("fastdet::box_iou_loss_backward")
def _(grad: Tensor, boxes1: Tensor, boxes2: Tensor, eps: float, kind: str) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes1, boxes2, ctx.eps, ctx.kind = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.fastdet.box_iou_loss_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.kind)
    return (*grads, None, None)


torch.library.register_autograd("fastdet::box_iou_loss", _backward, setup_context=_setup_context)
library.forbid_second_derivative("fastdet::box_iou_loss_backward")
