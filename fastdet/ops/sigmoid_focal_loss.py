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
    divisor: Tensor | None = None,
) -> Tensor:
    """Focal loss of independent sigmoids (https://arxiv.org/abs/1708.02002).

    Definition: `torchvision.ops.sigmoid_focal_loss`. Finite for every finite logit. Differentiable
    once, in inputs. Half types are computed in float32, and the loss is float32. No memory beyond
    the results and the gradient: "sum" and "mean" do not store the loss of each logit.

    On a GPU, "sum" and "mean" of inputs that require a gradient write this gradient in forward, for
    a loss that is used as it is: backward computes it anew only if the gradient that it receives is
    not 1. So divide by `divisor` here and not after the call.

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
        divisor: one number, by which the "sum" is divided; such as the number of positives.

    Returns:
        The shape of inputs for "none", else one number; float64 if inputs are float64, else
        float32.

    Raises:
        ValueError: alpha, gamma or reduction out of range; a divisor that is not one number, or
            with another reduction than "sum".
        RuntimeError: wrong shape, dtype or device.
    """
    if not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"alpha: expected a number in [0, 1], or -1, got {alpha}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma: expected a finite number >= 0, got {gamma}")
    if divisor is not None and (reduction != "sum" or divisor.numel() != 1):
        got = f"{tuple(divisor.shape)} with reduction {reduction!r}"
        raise ValueError(f"divisor: expected one number, with reduction 'sum', got {got}")
    if reduction == "none":
        return torch.ops.fastdet.sigmoid_focal_loss(inputs, targets, alpha, gamma)
    if divisor is not None:
        divisor = divisor.to(_result_dtype(inputs)).reshape(())
    if _writes_gradient(inputs, reduction, divisor):
        if reduction == "mean":
            divisor = inputs.new_full((), max(inputs.numel(), 1), dtype=_result_dtype(inputs))
        both = torch.ops.fastdet.sigmoid_focal_loss_sum_and_grad
        return both(inputs, targets, divisor, alpha, gamma)[0]
    total = torch.ops.fastdet.sigmoid_focal_loss_sum(inputs, targets, alpha, gamma)
    total = reduce_sum(total, inputs.numel(), reduction)
    return total if divisor is None else total / divisor


# The devices on which forward also writes the gradient.
_WRITING_DEVICES = {"cuda"}


def _writes_gradient(inputs: Tensor, reduction: str, divisor: Tensor | None) -> bool:
    """Whether forward also writes the gradient: not where a compiler would see it change later."""
    return (
        inputs.device.type in _WRITING_DEVICES
        and reduction in ("sum", "mean")
        and torch.is_grad_enabled()
        and inputs.requires_grad
        and not (divisor is not None and divisor.requires_grad)
        and not torch.compiler.is_compiling()
    )


def _result_dtype(inputs: Tensor) -> torch.dtype:
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


@library.register_fake("fastdet::sigmoid_focal_loss")
def _(inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    return inputs.new_empty(inputs.shape, dtype=_result_dtype(inputs))


@library.register_fake("fastdet::sigmoid_focal_loss_sum")
def _(inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    return inputs.new_empty((), dtype=_result_dtype(inputs))


@library.register_fake("fastdet::sigmoid_focal_loss_sum_and_grad")
def _(
    inputs: Tensor, targets: Tensor, divisor: Tensor | None, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    return inputs.new_empty((), dtype=_result_dtype(inputs)), inputs.new_empty(inputs.shape)


@library.register_fake("fastdet::sigmoid_focal_loss_correct_grad")
def _(
    written: Tensor,
    grad: Tensor,
    inputs: Tensor,
    targets: Tensor,
    divisor: Tensor | None,
    alpha: float,
    gamma: float,
) -> None:
    return None


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


def _setup_context_of_both(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, divisor, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, targets, divisor)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.written = output[1]


def _backward_of_both(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    # The gradient that forward wrote is given away once. A second backward, and one whose result
    # must not be differentiated, compute their own.
    inputs, targets, divisor = ctx.saved_tensors
    written, ctx.written = ctx.written, None
    if written is None or torch.is_grad_enabled():
        of_each = grad if divisor is None else grad / divisor
        written = torch.ops.fastdet.sigmoid_focal_loss_backward(
            of_each.expand_as(inputs), inputs, targets, ctx.alpha, ctx.gamma
        )
    else:
        torch.ops.fastdet.sigmoid_focal_loss_correct_grad(
            written, grad, inputs, targets, divisor, ctx.alpha, ctx.gamma
        )
    return written, None, None, None, None


for _op in ("fastdet::sigmoid_focal_loss", "fastdet::sigmoid_focal_loss_sum"):
    torch.library.register_autograd(_op, _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "fastdet::sigmoid_focal_loss_sum_and_grad",
    _backward_of_both,
    setup_context=_setup_context_of_both,
)
library.forbid_second_derivative("fastdet::sigmoid_focal_loss_backward")
