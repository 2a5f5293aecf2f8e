# SPDX-License-Identifier: BSD-3-Clause
"""Focal loss of sigmoid classifiers, with dense targets or with class labels."""

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
    once, in inputs. Half types are computed in float32, and the loss is float32. No memory beyond
    the results and the gradient: "sum" and "mean" do not store the loss of each logit.

    Args:
        inputs: logits of any shape; (..., C) if targets are labels.
        targets: floating with the shape of inputs, in [0, 1]; or int64 (...) labels. The target of
            class `label` in [0, C) is 1 and all others are 0. Label -1 is background: all targets
            are 0. Label -2 is ignored: loss and gradient of the row are 0. Any other label makes
            its row NaN.
        alpha: in [0, 1], the weight of target 1; target 0 has 1 - alpha. -1: no weights.
        gamma: >= 0, exponent that reduces the loss of well classified examples.
        reduction: "none", "sum" or "mean" (over all logits, also ignored ones; 0 if there are no
            logits).

    Returns:
        The shape of inputs for "none", else one number; float64 if inputs are float64, else
        float32.

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
