# SPDX-License-Identifier: BSD-3-Clause
"""3x3 convolutions on the CPU by Winograd's algorithm, for inference and for training.

They are in channels_last, with stride 1 and padding 1. They need 4 times fewer multiplications than
a direct convolution (`fastdet.ops.winograd`). Results differ only by rounding. Maps are in float32
or bfloat16; in training, they are in bfloat16 under autocast. For maps in bfloat16, which need 5
times fewer, the products are in float32, too: a processor with bfloat16 products computes twice as
many of them, which is less.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastdet import _native
from fastdet.engine.activations import Activation, Limits
from fastdet.engine.filters import Filters
from fastdet.engine.pooling import max_pool
from fastdet.ops.tracing import is_eager
from fastdet.ops.winograd import (
    ACTIVATIONS,
    winograd_conv,
    winograd_filters,
    winograd_filters_grad,
    winograd_filters_turned,
)

# With fewer output channels a panel of filters is mostly padding. With fewer input channels the
# transforms cost more than they save.
LEAST_OUTPUTS, LEAST_INPUTS = 24, 16
# In bfloat16, where a direct convolution takes half the time: of more input channels, the filters
# take longer to read and to transform than the smaller maps of such layers save.
LEAST_IN_BFLOAT16, MOST_INPUTS_IN_BFLOAT16 = 64, 512
# Activations that are no part of the convolution, by oneDNN's names.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish": functools.partial(F.hardswish, inplace=True),
    "sigmoid": torch.sigmoid_,
}
KEPT_FILTERS = 6  # about as many as the convolutions of a head at one level


class WinogradConv(nn.Module):
    """A convolution and an activation. A module's own filters are laid out in each call.

    Args:
        filters, bias: of a convolution for which `has_winograd_shape` is true; `ready` for the
            dtype of the maps.
        activation: one of ACTIVATIONS, which the convolution computes, a key of IN_PLACE, or
            limits. After a sum, only "relu" or "none".
        is_copy: whether the filters are no module's own. Then they are only kept as laid out.
    """

    def __init__(
        self,
        filters: Filters,
        bias: Tensor | None,
        activation: Activation,
        is_copy: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = len(filters.weight)
        self.filters = None if is_copy else filters
        self.laid_out = _laid_out(filters) if is_copy else None
        self.bias = None if bias is None else bias.float()
        if isinstance(activation, Limits):
            self.activation = "none"
            self.in_place = functools.partial(torch.clamp_, min=activation[0], max=activation[1])
        else:
            self.activation = activation if activation in ACTIVATIONS else "none"
            self.in_place = IN_PLACE.get(activation)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H, W), in the dtype of the filters.

        `other` is added before the activation.
        """
        result = self._summed(x, other)
        return result if self.in_place is None else self.in_place(result)

    def _summed(self, x: Tensor, other: Tensor | None) -> Tensor:
        if other is not None and other.shape != (len(x), self.out_channels, *x.shape[2:]):
            total = self._run(x, None, "none") + other
            return total.relu_() if self.activation == "relu" else total
        return self._run(x, other, self.activation)

    def _run(self, x: Tensor, summand: Tensor | None, activation: str) -> Tensor:
        filters = self.laid_out if self.filters is None else _laid_out(self.filters)
        assert filters is not None
        return winograd_conv(x, filters, self.bias, summand, self.out_channels, activation)


def _laid_out(filters: Filters) -> Tensor:
    if filters.centre is None:
        return winograd_filters(filters.weight, filters.scale)
    return winograd_filters(filters.whole())


class WinogradMode(TorchFunctionMode):
    """In this context suitable convolutions and their gradients use Winograd's algorithm.

    Max pooling uses our kernel, under autocast, too.
    """

    def __init__(self) -> None:
        super().__init__()
        # By the id of the weight and the dtype; the most recently used is last.
        self.kept: dict[tuple[int, torch.dtype], _Filters] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = _dtype_of(*args) if func is F.conv2d and not kwargs else None
        if dtype is not None:
            x, weight, bias = args[:3]
            key = id(weight), dtype
            kept = self.kept[key] = self.kept.pop(key, None) or _Filters(weight, dtype)
            if len(self.kept) > KEPT_FILTERS:
                self.kept.pop(next(iter(self.kept)))
            return _Conv.apply(x.to(dtype), weight, bias, kept.filters, kept.turned)
        if func is F.max_pool2d:
            return max_pool(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Filters:
    """The filters of a weight, laid out in a dtype, for its calls in one mode.

    Attributes:
        weight: kept so that no new weight can get the same id.
        filters: for the convolution.
        turned: for the gradients of the calls' inputs.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight
        self.filters = winograd_filters(weight.detach().to(dtype))
        self.turned = _Turned()


class _Turned:
    """The turned filters of a weight, from the first call that needs them in backward to the last.

    A head that is called at several levels lays out its filters once in backward, too.
    """

    def __init__(self) -> None:
        self.calls = 0  # whose gradients are still to be computed
        self.filters: Tensor | None = None

    def of(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The filters in a dtype, for one call."""
        filters = self.filters
        if filters is None:
            filters = winograd_filters_turned(weight.to(dtype))
        self.calls -= 1
        self.filters = filters if self.calls > 0 else None
        return filters


def has_winograd_shape(
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Whether the algorithm can compute this convolution and is faster on this processor.

    Args:
        weight, stride, padding, dilation, groups: of the convolution.
        dtype: in which it is computed, float32 or bfloat16.
    """
    outputs, inputs, *sides = weight.shape
    least_outputs, least_inputs = LEAST_OUTPUTS, LEAST_INPUTS
    if dtype == torch.bfloat16:
        # AMX computes 16 times as many bfloat16 products as AVX-512 computes float32 products.
        if inputs > MOST_INPUTS_IN_BFLOAT16 or torch.cpu._is_amx_tile_supported():
            return False
        least_outputs = least_inputs = LEAST_IN_BFLOAT16
    return (
        sides == [3, 3]
        and all(number in (1, (1, 1), [1, 1]) for number in (stride, padding, dilation))
        and groups == 1
        and outputs >= least_outputs
        and inputs >= least_inputs
        and _native.cpu_isa() != "baseline"  # not faster without fused multiply-adds
    )


class _Conv(torch.autograd.Function):
    """Convolution with gradients of a map, a weight, a bias or None; with both kinds of filters.

    The map can be in bfloat16. Weight and bias are in float32, and so are their gradients, which
    are sums of products in float32 and not rounded.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, bias, filters, ctx.turned = args
        ctx.save_for_backward(x, weight)  # not the filters, a copy
        ctx.turned.calls += ctx.needs_input_grad[0]
        return winograd_conv(x, filters, bias, None, weight.shape[0], "none")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # create_graph=True: torch's backward is differentiable
            numbers = [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            return (
                *torch.ops.aten.convolution_backward(grad, x, weight.to(x.dtype), *numbers, wanted),
                None,
                None,
            )
        x_grad = weight_grad = bias_grad = None
        if wanted[1]:
            weight_grad = winograd_filters_grad(grad, x)
        if wanted[0]:
            turned = ctx.turned.of(weight, x.dtype)
            x_grad = winograd_conv(grad, turned, None, None, x.shape[1], "none")
        if wanted[2]:
            bias_grad = grad.sum((0, 2, 3), dtype=weight.dtype)
        return x_grad, weight_grad, bias_grad, None, None


def _dtype_of(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> torch.dtype | None:
    """The dtype in which this convolution uses the algorithm; None: it does not use it."""
    if not (is_eager(x) and all(t is None or is_plain(t) for t in (weight, bias))):
        return None
    dtype = torch.float32
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    fits = (
        dtype in (torch.float32, torch.bfloat16)
        and x.dtype in (torch.float32, dtype)
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch._C._are_functorch_transforms_active()
        and has_winograd_shape(weight, stride, padding, dilation, groups, dtype)
    )
    return dtype if fits else None


def is_plain(tensor: Any) -> bool:
    """Whether this is a tensor or parameter in float32 on the CPU, and not of a subclass."""
    kind = type(tensor) in (Tensor, nn.Parameter)
    return kind and tensor.device.type == "cpu" and tensor.dtype == torch.float32
