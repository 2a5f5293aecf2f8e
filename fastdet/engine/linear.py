# SPDX-License-Identifier: BSD-3-Clause
"""Linear layers in float32 by oneDNN, on processors where torch's own products are slow.

On AMD's processors with AVX-512, the library behind torch's products (MKL) uses AVX2 alone, and
oneDNN, which computes torch's convolutions, is about twice as fast. Results differ only by
rounding.
"""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdet import _native
from fastdet.engine.winograd import is_plain
from fastdet.ops.tracing import is_eager

LEAST_PRODUCTS = 1 << 20  # multiplications; with fewer, the call takes longer than they do
ROWS = 1024  # that the gradient of a weight takes at a time: they are transposed in the cache


class LinearMode(TorchFunctionMode):
    """In this context suitable linear layers and their gradients are computed by oneDNN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and _fits(*args):
            x, weight, bias = (*args, None)[:3]
            linear: Any = _Linear.apply if torch.is_grad_enabled() else _linear
            return linear(x, weight, bias)
        return func(*args, **(kwargs or {}))


def products_are_slow() -> bool:
    """Whether torch multiplies matrices in float32 more slowly than oneDNN on this processor."""
    mkldnn = torch.backends.mkldnn
    used = torch.backends.mkl.is_available() and mkldnn.is_available() and mkldnn.enabled
    return used and _native.cpu_isa() == "avx512" and _is_amd()


@functools.cache
def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _Linear(torch.autograd.Function):
    """A linear layer with gradients of its input, its weight and its bias."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, bias = args
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        shape = x.shape
        of_rows = grad.flatten(0, -2).contiguous()  # (N, outputs)
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True: torch's products are differentiable
            x_grad = of_rows @ weight if wanted[0] else None
            of_weight = of_rows.t() @ x.flatten(0, -2) if wanted[1] else None
        else:
            of_weight = weight_grad(of_rows, x.flatten(0, -2)) if wanted[1] else None
            # The gradient of x can take the memory of x, which nothing else may need now.
            del x
            ctx.maybe_clear_saved_tensors()
            x_grad = product(of_rows, weight.t()) if wanted[0] else None
        bias_grad = of_rows.sum(0) if wanted[2] else None
        return None if x_grad is None else x_grad.view(shape), of_weight, bias_grad


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))


def weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a weight: (N, outputs) and (N, inputs) -> (outputs, inputs), in float32."""
    if not _is_faster(grad, x.t()):
        return grad.t() @ x
    total, *further = (
        product(of_output.t(), of_input.t())
        for of_output, of_input in zip(grad.split(ROWS), x.split(ROWS), strict=True)
    )
    for part in further:
        total += part
    return total


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, inputs) and (outputs, inputs) -> (N, outputs), in float32, without autograd."""
    if not _is_faster(x, weight):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply them; it refuses matrices without rows."""
    return x.numel() * len(weight) >= LEAST_PRODUCTS and products_are_slow()


def _fits(x: Any, weight: Any, bias: Any = None) -> bool:
    return (
        all(t is None or is_plain(t) for t in (x, weight, bias))
        and is_eager(x)
        and x.dim() > 1
        and x.numel() * len(weight) >= LEAST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )
