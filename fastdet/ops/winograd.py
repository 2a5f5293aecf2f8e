# SPDX-License-Identifier: BSD-3-Clause
"""3x3 convolutions by Winograd's algorithm: on the CPU, stride 1, padding 1.

They need 4 times fewer multiplications than a direct convolution: F(4x4, 3x3), and F(3x3, 4x4) for
the gradient with respect to the weight. Results differ only by rounding. Products and sums are in
float32; maps, and the filters of `winograd_conv`, can be in bfloat16, where F(6x6, 3x3) needs 5
times fewer multiplications. These ops have no autograd; `fastdet.engine.winograd` has a convolution
with gradients.
Paper: https://arxiv.org/abs/1509.09308.
"""

import torch
from torch import Tensor

from . import library

TAPS = 9
PANEL = 32  # output channels that are stored together
ACTIVATIONS = ("none", "relu", "swish")  # by oneDNN's names; in the order of C++


def winograd_filters(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """The filters of a convolution in the layout of `winograd_conv`.

    It takes about as long as to read the weight from memory.

    Args:
        weight: (K, C, 3, 3) float32 or bfloat16; a weight that is neither contiguous nor
            channels_last is copied first.
        scale: (K,) float32, the factor of each filter, as of a norm after the convolution; or None.

    Returns:
        (panels, C, 9, 32) in the dtype of the weight. The output channels are in panels of 32; the
        last panel is padded with zeros.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return torch.ops.fastdet.winograd_filters(weight, scale)


def winograd_filters_turned(weight: Tensor) -> Tensor:
    """The filters for the gradient with respect to the input of a convolution.

    That is a convolution from K to C channels with the filters rotated by 180 degrees.

    Args:
        weight: (K, C, 3, 3) float32 or bfloat16.

    Returns:
        (panels, K, 9, 32) in the dtype of the weight, as of `winograd_filters`.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return torch.ops.fastdet.winograd_filters_turned(weight)


def winograd_conv(
    input: Tensor,
    filters: Tensor,
    bias: Tensor | None,
    summand: Tensor | None,
    channels: int,
    activation: str,
) -> Tensor:
    """`F.conv2d(input, weight, bias, padding=1)`, then adds a summand, then applies an activation.

    Args:
        input: (B, C, H, W) float32 or bfloat16; a map that is not channels_last is copied first.
        filters: `winograd_filters` of the weight in the dtype of the input.
        bias: (channels,) float32, or None.
        summand: (B, channels, H, W) in the dtype of the input, or None: add nothing.
        channels: K, the number of output channels without the padding of the last panel.
        activation: one of ACTIVATIONS.

    Returns:
        (B, channels, H, W) in the dtype of the input, rounded to it once; channels_last. The same
        for any number of threads.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    kind = ACTIVATIONS.index(activation)
    return torch.ops.fastdet.winograd_conv(input, filters, bias, summand, channels, kind)


def winograd_filters_grad(grad: Tensor, input: Tensor) -> Tensor:
    """The gradient with respect to the weight of the convolution.

    Args:
        grad: (B, K, H, W) float32 or bfloat16, the gradient with respect to the output.
        input: (B, C, H, W) in the dtype of grad.

    Returns:
        (K, C, 3, 3) float32, channels_last. The same for any number of threads.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return torch.ops.fastdet.winograd_filters_grad(grad, input)


@library.register_fake("fastdet::winograd_filters")
def _(weight: Tensor, scale: Tensor | None) -> Tensor:
    outputs, depth = weight.shape[:2]
    return weight.new_empty((outputs + PANEL - 1) // PANEL, depth, TAPS, PANEL)


@library.register_fake("fastdet::winograd_filters_turned")
def _(weight: Tensor) -> Tensor:
    depth, outputs = weight.shape[:2]
    return weight.new_empty((outputs + PANEL - 1) // PANEL, depth, TAPS, PANEL)


@library.register_fake("fastdet::winograd_conv")
def _(
    input: Tensor,
    filters: Tensor,
    bias: Tensor | None,
    summand: Tensor | None,
    channels: int,
    activation: int,
) -> Tensor:
    shape = (input.shape[0], channels, *input.shape[2:])
    return torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last
    )


@library.register_fake("fastdet::winograd_filters_grad")
def _(grad: Tensor, input: Tensor) -> Tensor:
    shape = (grad.shape[1], input.shape[1], 3, 3)
    return torch.empty(shape, device=input.device, memory_format=torch.channels_last)
