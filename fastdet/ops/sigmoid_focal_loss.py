# SPDX-License-Identifier: BSD-3-Clause
"""Focal loss of sigmoid classifiers, from dense targets or from class labels."""

import math
from typing import Any

import torch
from torch import Tensor

from . import library
from .reduction import reduce_sum


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """Focal loss of independent sigmoids (https://arxiv.org/abs/1708.02002).

    Definition: `torchvision.ops.sigmoid_focal_loss`. Finite for every finite logit. Differentiable
    once, in inputs. Half types are computed, and the loss is returned, in float32. No memory beyond
    the results and the gradient: a sum or mean never stores the single losses.

    Args:
        inputs: logits of any shape, (..., C) where targets are labels.
        targets: floating with the shape of inputs, in [0, 1]; or int64 (...) labels: the class in
            [0, C) whose target is 1, -1 for background (all 0), -2 for a row that is ignored (its
            loss and gradient are 0). Any other label makes its row NaN.
        alpha: weight in [0, 1] of target 1, 1 - alpha of target 0; -1 for no weights.
        gamma: exponent >= 0 that reduces the loss of well classified examples.
        reduction: "none", "mean" (over all logits, ignored ones too; 0 for none) or "sum".

    Returns:
        The shape of inputs for "none", else one number; float64 if inputs are, else float32.

    Raises:
        ValueError: alpha, gamma or reduction out of range.
        RuntimeError: wrong shape, dtype or device.
    """
    if not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"alpha: expected a number in [0, 1], or -1, got {alpha}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma: expected a finite number >= 0, got {gamma}")
    if reduction == "none":
        return torch.ops.fastdet.sigmoid_focal_loss(inputs, targets, alpha, gamma)
    total = torch.ops.fastdet.sigmoid_focal_loss_sum(inputs, targets, alpha, gamma)
    return reduce_sum(total, inputs.numel(), reduction)


def _result_dtype(inputs: Tensor) -> torch.dtype:
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


@library.register_fake("fastdet::sigmoid_focal_loss")
def _(inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    return inputs.new_empty(inputs.shape, dtype=_result_dtype(inputs))


@library.register_fake("fastdet::sigmoid_focal_loss_sum")
def _(inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    return inputs.new_empty((), dtype=_result_dtype(inputs))


@library.register_fake("fastdet::sigmoid_focal_loss_backward")
def _(grad: Tensor, inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    return inputs.new_empty(inputs.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs, targets = ctx.saved_tensors
    grad_inputs = torch.ops.fastdet.sigmoid_focal_loss_backward(
        grad.expand_as(inputs), inputs, targets, ctx.alpha, ctx.gamma
    )
    return grad_inputs, None, None, None


for _op in ("fastdet::sigmoid_focal_loss", "fastdet::sigmoid_focal_loss_sum"):
    torch.library.register_autograd(_op, _backward, setup_context=_setup_context)
library.forbid_second_derivative("fastdet::sigmoid_focal_loss_backward")
