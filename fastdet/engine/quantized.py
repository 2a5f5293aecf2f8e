# SPDX-License-Identifier: BSD-3-Clause
"""Layers of a network in 8-bit integers on the CPU. `quantizing.py` builds the networks.

A map is stored as uint8. The number q stands for scale * (q - zero_point), the same `Grid` for the
whole map. Weights are int8, symmetric, with a scale for each output channel. Products are summed in
32-bit integers without rounding. The bias, a summand and the activation are applied in float32, and
the result is rounded once: to the grid of the result, or to a floating type.

Products are oneDNN's. 3x3 convolutions of many channels are our own, by Winograd's algorithm
(`fastdet.ops.winograd_int8`), where that is faster. It rounds transformed inputs and filters to
8 bits.

Under torch.export each layer is instead the same computation on floating numbers, between
quantize_per_tensor and dequantize_per_tensor, which become ONNX's QuantizeLinear and
DequantizeLinear.
"""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.ao.quantization.fx._decomposed  # torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet import _native
from fastdet.engine.activations import Activation, Limits, unary_of
from fastdet.engine.fusing import FusedConv, FusedLinear, fused_conv, upsample
from fastdet.ops.quantize_map import quantize_map
from fastdet.ops.tracing import is_eager
from fastdet.ops.winograd_int8 import (
    Int8Filters,
    winograd_conv_int8,
    winograd_filters_int8,
    winograd_roundings_int8,
)

LARGEST = 255  # of uint8
# oneDNN's layout of a convolution's weight can depend on the map size. A wrong one is converted at
# each call, which takes longer than the convolution. So a few sizes of a layer are kept.
KEPT_LAYOUTS = 8
# Activations that are fused with a convolution or a linear layer in integers, by oneDNN's names.
CONV_ACTIVATIONS = ("none", "relu", "hardswish", "swish")
LINEAR_ACTIVATIONS = ("none", "relu")
POINTWISE = (0, 0), (1, 1), (1, 1), 1  # padding, stride, dilation, groups
# By Winograd's algorithm: with fewer channels, its transforms take as long as it saves. On small
# maps it saves little time, and its roundings may be large: of a head's coarse levels, numbers may
# use a small part of the grid that all levels share.
AROUND = (1, 1), (1, 1), (1, 1), 1
LEAST_INPUTS, LEAST_OUTPUTS, LEAST_PIXELS = 96, 64, 400
WINOGRAD_ACTIVATIONS = ("none", "relu")
_packing = threading.Lock()
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
}


def _activated(x: Tensor, activation: Activation) -> Tensor:
    if isinstance(activation, Limits):
        return x.clamp(activation.least, activation.most)
    return _FUNCTIONS[activation](x)


class Grid(NamedTuple):
    """The 256 numbers scale * (q - zero_point) for q in 0 .. 255."""

    scale: float
    zero_point: int


def quantized_map(x: Tensor, grid: Grid) -> Tensor:
    """Rounds each number to the nearest one of the grid, ties to even: float32 or bfloat16 -> q."""
    if is_eager(x):
        return quantize_map(x, *grid)
    return torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid, 0, LARGEST, torch.uint8)


def numbers(q: Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that q stands for."""
    if is_eager(q):
        return q.to(dtype).sub_(grid.zero_point).mul_(grid.scale)
    own = torch.ops.quantized_decomposed.dequantize_per_tensor
    return own(q, *grid, 0, LARGEST, torch.uint8)


def float_dtype() -> torch.dtype:
    """The type of what is not in integers: autocast's on the CPU, or float32."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return torch.float32


class QuantizedWeight(nn.Module):
    """A weight in int8 with a scale for each output channel, and copies in other layouts.

    Args:
        weight: float32, output channels first.
        bias: float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        largest = weight.abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        steps = 127 if has_byte_products() else 63  # see has_byte_products
        scale = largest / steps
        rows = scale.view(-1, *[1] * (weight.dim() - 1))
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.zeros: Tensor  # the zero points
        self.register_buffer("weight", (weight / rows).round().to(torch.int8))
        self.register_buffer("scale", scale)
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        self.register_buffer("zeros", zeros, persistent=False)
        bias = torch.zeros_like(scale) if bias is None else bias.detach().float().clone()
        self.register_buffer("bias", bias)
        self.packed: dict[Any, Any] = {}

    def in_float32(self) -> Tensor:
        """The weight that the integers stand for, for an export."""
        zeros = torch.zeros_like(self.scale, dtype=torch.int64)
        own = torch.ops.quantized_decomposed.dequantize_per_channel
        return own(self.weight, self.scale, zeros, 0, -128, 127, torch.int8)

    def packed_for(self, key: Any, pack: Callable[[], Any]) -> Any:
        """The copy of the weight for `key`; `pack` makes it. Several threads may call it."""
        with _packing:
            if key not in self.packed:
                while len(self.packed) >= KEPT_LAYOUTS:
                    self.packed.pop(next(iter(self.packed)))
                self.packed[key] = pack()
            return self.packed[key]

    def packed_as_linear(self, shape: tuple[int, ...] = ()) -> Tensor:
        """oneDNN's copy for a linear layer; `shape`: (C, h, w) of flattened channels_last maps."""

        def pack() -> Tensor:
            weight = self.weight.flatten(1)
            if shape:
                weight = weight.unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)
            return torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)

        return self.packed_for(shape, pack)

    def packed_for_winograd(self, scale: float) -> tuple[Int8Filters, Tensor]:
        """Filters for `winograd_conv_int8`, and its `scales` for an input of a scale."""
        return self.packed_for(
            ("winograd", scale), lambda: (winograd_filters_int8(self.weight), self.scale * scale)
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.packed = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "packed": {}}  # the layouts can be made again


def _of(result: Grid | None) -> tuple[float, int, torch.dtype]:
    """Scale, zero point and type of a result; None: it is floating."""
    return (result.scale, result.zero_point, torch.uint8) if result else (1.0, 0, float_dtype())


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) in channels_last -> (B * H * W, C), a view."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def has_winograd_shape(conv: FusedConv) -> bool:
    """Whether `winograd_conv_int8` can compute this layer, of enough channels to be faster."""
    outputs, inputs = conv.filters.weight.shape[:2]
    return (
        conv.kernel_size == (3, 3)
        and conv.geometry == AROUND
        and conv.activation in WINOGRAD_ACTIVATIONS
        and inputs >= LEAST_INPUTS
        and outputs >= LEAST_OUTPUTS
    )


class QuantizedConv(nn.Module):
    """A FusedConv on integers: convolution, sum and activation, rounded once.

    A 1x1 convolution is a linear layer of the pixels. oneDNN's linear layer is as fast, one
    layout of its weight is for all map sizes, and a sum is written in place without a copy.

    Args:
        conv: the layer in float32.
        grid: of the input.
        other: of the summand; None: there is no sum.
        result: of the result; None: the result is floating, in `float_dtype()`.
        positions: (16, 2), the ranges of the input's `winograd_positions`, for a layer of
            `has_winograd_shape`.
    """

    def __init__(
        self,
        conv: FusedConv,
        grid: Grid,
        other: Grid | None,
        result: Grid | None,
        positions: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.content = QuantizedWeight(conv.filters.whole(), conv.bias)
        self.padding, self.stride, self.dilation, self.groups = conv.geometry
        self.activation = conv.activation
        is_pointwise = conv.kernel_size == (1, 1) and conv.geometry == POINTWISE
        self.is_linear = is_pointwise and conv.activation in LINEAR_ACTIVATIONS
        roundings = None if positions is None else winograd_roundings_int8(positions, grid.scale)
        self.roundings: Tensor | None
        self.register_buffer("roundings", roundings, persistent=False)
        self.grid, self.other, self.result = grid, other, result

    def forward(self, x: Tensor, other: Tensor | None = None, over_other: bool = False) -> Tensor:
        """uint8 (B, C, H, W) -> (B, out_channels, H', W'); with `over_other` it writes `other`."""
        if not is_eager(x):
            return self._simulated(x, other)
        is_large = x.shape[2] * x.shape[3] >= LEAST_PIXELS
        if self.roundings is not None and is_large and has_fast_winograd():
            return self._by_winograd(x, self.roundings, other)
        x = x.contiguous(memory_format=torch.channels_last)
        if other is not None:
            total = other.contiguous(memory_format=torch.channels_last)
            if not over_other and total.data_ptr() == other.data_ptr():
                total = total.clone()
            return self._added_to(total, x)
        if self.is_linear and x.numel() > 0:
            linear, rows = torch.ops.onednn.qlinear_pointwise, _pixels(x)
            y = linear(rows, *self._of_linear(), *_of(self.result), self.activation, [], "")
            return y.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        return torch.ops.onednn.qconv_pointwise(
            x, *self._of_conv(x), *_of(self.result), *unary_of(self.activation), ""
        )

    def _by_winograd(self, x: Tensor, roundings: Tensor, other: Tensor | None) -> Tensor:
        own = self.content
        assert isinstance(self.activation, str)
        filters, scales = own.packed_for_winograd(self.grid.scale)
        scale, zero_point, dtype = _of(self.result)
        result = self.activation, dtype, scale, zero_point
        arguments = roundings, filters, scales, own.bias, *result
        if other is None:
            return winograd_conv_int8(x, self.grid.zero_point, *arguments)
        assert self.other is not None
        return winograd_conv_int8(x, self.grid.zero_point, *arguments, other, *self.other)

    def _added_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Writes the result over the summand."""
        assert self.other is not None
        assert self.result is not None
        result = *_of(self.result), *self.other, "sum", 1.0, self.activation, [], ""
        if self.is_linear:
            add, arguments = torch.ops.onednn.qlinear_pointwise.binary, self._of_linear()
            add(_pixels(x), *arguments[:5], _pixels(total), *arguments[5:], *result)
        else:  # returns a copy
            add, arguments = torch.ops.onednn.qconv2d_pointwise.binary, self._of_conv(x)
            add(x, *arguments[:5], total, *arguments[5:], *result)
        return total

    def _of_linear(self) -> tuple[Any, ...]:
        own = self.content
        return *self.grid, own.packed_as_linear(), own.scale, own.zeros, own.bias

    def _of_conv(self, x: Tensor) -> tuple[Any, ...]:
        own = self.content
        geometry = self.stride, self.padding, self.dilation, self.groups
        shape = tuple(x.shape)

        def pack() -> Tensor:
            weight = own.weight.contiguous(memory_format=torch.channels_last)
            make = torch.ops.onednn.qconv_prepack
            return make(weight, own.scale, *self.grid, *geometry, shape)

        return *self.grid, own.packed_for(shape, pack), own.scale, own.zeros, own.bias, *geometry

    def _simulated(self, x: Tensor, other: Tensor | None) -> Tensor:
        own = self.content
        geometry = self.stride, self.padding, self.dilation, self.groups
        y = F.conv2d(numbers(x, self.grid), own.in_float32(), own.bias, *geometry)
        if other is not None:
            assert self.other is not None
            y = y + numbers(other, self.other)
        y = _activated(y, self.activation)
        return y if self.result is None else quantized_map(y, self.result)


class QuantizedLinear(nn.Module):
    """A FusedLinear on integers.

    Args:
        linear: the layer in float32.
        grid: of the input.
        result: of the result; None: the result is floating, in `float_dtype()`.
    """

    def __init__(self, linear: FusedLinear, grid: Grid, result: Grid | None) -> None:
        super().__init__()
        self.content = QuantizedWeight(linear.linear.weight, linear.linear.bias)
        self.activation = linear.activation
        self.flattens = linear.flattens
        self.grid, self.result = grid, result

    def forward(self, x: Tensor) -> Tensor:
        """uint8 (..., in_features) -> (..., out_features); (K, C, h, w) -> (K, out_features)."""
        own = self.content
        if not is_eager(x):
            x = x.flatten(1) if self.flattens else x
            y = F.linear(numbers(x, self.grid), own.in_float32(), own.bias)
            y = _FUNCTIONS[self.activation](y)
            return y if self.result is None else quantized_map(y, self.result)
        shape: tuple[int, ...] = ()
        if self.flattens:
            if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
                shape = tuple(x.shape[1:])
                x = x.permute(0, 2, 3, 1)
            x = x.flatten(1)
        of_result = _of(self.result)
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], len(own.scale)), dtype=of_result[-1])
        arguments = *self.grid, own.packed_as_linear(shape), own.scale, own.zeros, own.bias
        linear = torch.ops.onednn.qlinear_pointwise
        return linear(x, *arguments, *of_result, self.activation, [], "")


class FloatLayer(nn.Module):
    """A FusedConv or a FusedLinear that stays floating: one form for each type of its input.

    Args:
        layer: in float32.
    """

    def __init__(self, layer: FusedConv | FusedLinear) -> None:
        super().__init__()
        self.layer = layer
        self.forms: dict[torch.dtype, nn.Module] = {}

    def forward(self, x: Tensor, *other: Tensor, over_other: bool = False) -> Tensor:
        """As the layer."""
        if not is_eager(x):
            return self._simulated(x, *other)
        if x.dtype not in self.forms:
            self.forms[x.dtype] = self._form(x.dtype)
        return self.forms[x.dtype](x, *other)

    def _form(self, dtype: torch.dtype) -> nn.Module:
        own = self.layer
        if isinstance(own, FusedConv):
            return fused_conv(own.filters, own.bias, own.geometry, own.activation, dtype)
        return FusedLinear(own.linear, own.activation, dtype, own.flattens)

    def _simulated(self, x: Tensor, *other: Tensor) -> Tensor:
        own = self.layer
        if isinstance(own, FusedLinear):
            x = x.flatten(1) if own.flattens else x
            y = F.linear(x, own.linear.weight, own.linear.bias)
        else:
            padding, stride, dilation, groups = own.geometry
            y = F.conv2d(x, own.filters.whole(), own.bias, stride, padding, dilation, groups)
        y = sum(other, y)
        return _activated(y, own.activation)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forms = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "forms": {}}


class Quantize(nn.Module):
    """`quantized_map` as a layer."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Floating numbers -> uint8."""
        return quantized_map(x, self.grid)


class Dequantize(nn.Module):
    """`numbers` as a layer; the result is in `float_dtype()`."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, q: Tensor) -> Tensor:
        """uint8 -> floating numbers."""
        return numbers(q, self.grid, float_dtype())


class ToFloat(nn.Module):
    """Changes an input of a network to `float_dtype()`."""

    def forward(self, x: Tensor) -> Tensor:
        """Floating numbers -> floating numbers."""
        return x.to(float_dtype())


class Passed(nn.Module):
    """An operation on integers that rounds nothing: a resize, pooling, a concatenation or ReLU.

    Args:
        function: F.relu, torch.cat, F.interpolate, `fusing.upsample` or `pooling.max_pool`.
        grid: of the inputs and the result.
    """

    def __init__(self, function: Callable[..., Tensor], grid: Grid) -> None:
        super().__init__()
        self.function, self.grid = function, grid

    def forward(self, q: Tensor | Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """`function(q, *args, **kwargs)` for one or several maps in uint8."""
        if not is_eager(q if isinstance(q, Tensor) else q[0]):
            if isinstance(q, Tensor):
                x: Any = numbers(q, self.grid)
            else:
                x = [numbers(each, self.grid) for each in q]
            return quantized_map(self._plain()(x, *args, **kwargs), self.grid)
        if self.function is F.relu:
            assert isinstance(q, Tensor)
            return q.clamp(min=self.grid.zero_point)
        return self._plain()(q, *args, **kwargs)

    def _plain(self) -> Callable[..., Tensor]:
        """The function for integers, and for an export."""
        if self.function is upsample:
            return functools.partial(F.interpolate, mode="nearest")
        return self.function


@functools.cache
def has_byte_products() -> bool:
    """Whether the processor sums products of uint8 and int8 in 32 bits (VNNI), without overflow.

    Others sum two products in 16 bits. For these, weights have 7 bits, so that nothing overflows.
    """
    return any(map(_native.cpu_has_byte_products, _native.usable_cpu_isas()))


def has_fast_winograd() -> bool:
    """Whether `winograd_conv_int8` is faster than oneDNN's convolution on this processor.

    Not without byte products, nor with AMX, where direct convolutions are much faster.
    """
    return _has_fast_winograd(_native.cpu_isa())


@functools.cache
def _has_fast_winograd(isa: str) -> bool:
    return _native.cpu_has_byte_products(isa) and not torch.cpu._is_amx_tile_supported()


def warn_if_slow() -> None:
    """Says once that this processor has no fast products of 8-bit integers."""
    if not has_byte_products():
        warnings.warn(
            "this processor has no 8-bit products (VNNI): a quantised detector is right on it, but "
            "not fast, and its weights have 7 bits",
            stacklevel=3,
        )
