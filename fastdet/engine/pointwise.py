# SPDX-License-Identifier: BSD-3-Clause
"""1x1 convolutions in training, in float32 and on one thread, by oneDNN.

Torch computes them by matrix products there, of MKL, which is slow on some processors: see
`linear.py`. On several threads torch takes oneDNN itself. Results differ only by rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdet.engine.linear import LEAST_PRODUCTS, product, weight_grad
from fastdet.engine.winograd import is_plain
from fastdet.ops.tracing import is_eager

POINTWISE = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups


class PointwiseMode(TorchFunctionMode):
    """In this context suitable 1x1 convolutions and their gradients are computed by oneDNN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and not kwargs and _fits(*args):
            x, weight, bias = (*args, None)[:3]
            return _PointwiseConv.apply(x, weight, bias)
        return func(*args, **(kwargs or {}))


class _PointwiseConv(torch.autograd.Function):
    """A convolution with gradients of its input, its weight and its bias."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, bias = args
        ctx.save_for_backward(x, weight)
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, *POINTWISE)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad)
        if torch.is_grad_enabled():  # create_graph=True: torch's backward is differentiable
            padding, *rest, groups = POINTWISE
            geometry = [len(weight)], rest[0], padding, rest[1], False, [0, 0], groups
            return torch.ops.aten.convolution_backward(grad, x, weight, *geometry, wanted)
        of_pixels, shape = _pixels(grad), (len(x), *x.shape[2:], x.shape[1])
        x_grad = of_weight = None
        if wanted[1]:
            of_weight = weight_grad(of_pixels, _pixels(x)).view(weight.shape)
        # The gradient of x can take the memory of x, which nothing else may need now.
        del x
        ctx.maybe_clear_saved_tensors()
        if wanted[0]:
            x_grad = product(of_pixels, weight.flatten(1).t()).view(shape).permute(0, 3, 1, 2)
        bias_grad = of_pixels.sum(0) if wanted[2] else None
        return x_grad, of_weight, bias_grad


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C), a view of a map in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _fits(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> bool:
    return (
        torch.is_grad_enabled()
        and all(t is None or is_plain(t) for t in (x, weight, bias))
        and is_eager(x)
        and weight.shape[2:] == (1, 1)
        and all(n in (1, (1, 1), [1, 1]) for n in (stride, dilation, groups))
        and padding in (0, (0, 0), [0, 0])
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() * len(weight) >= LEAST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )
