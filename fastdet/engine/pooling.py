# SPDX-License-Identifier: BSD-3-Clause
"""Max pooling on the CPU: our kernel for maps in channels_last, for inference and for training.

In training it keeps a byte for each output instead of the input and an index of 8 bytes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.ops.max_pool import max_pool2d
from fastdet.ops.tracing import is_eager

DTYPES = (torch.float32, torch.bfloat16)
MOST_PLACES = 256  # in a window

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def max_pool(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`F.max_pool2d` with the same arguments and the same result, bit for bit.

    Of uint8, for which torch has none, only where `takes_bytes`.
    """
    geometry, rounds_up = _geometry(*args, **kwargs)
    if geometry is not None and not rounds_up and is_eager(x) and x.dtype == torch.uint8:
        return max_pool2d(x, *geometry)
    if geometry is None or not _fits(x, geometry, rounds_up):
        return F.max_pool2d(x, *args, **kwargs)
    return max_pool2d(x, *geometry)


def takes_bytes(*args: Any, **kwargs: Any) -> bool:
    """Whether `max_pool` with these arguments after the map is for uint8, too."""
    geometry, rounds_up = _geometry(*args, **kwargs)
    return geometry is not None and not rounds_up


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` that runs `max_pool`."""

    @classmethod
    def of(cls, pool: nn.MaxPool2d) -> "MaxPool2d":
        """With the options of another one."""
        return cls(
            pool.kernel_size,
            pool.stride,
            pool.padding,
            pool.dilation,
            pool.return_indices,
            pool.ceil_mode,
        )

    def forward(self, input: Tensor) -> Any:
        """(B, C, H, W) -> (B, C, H', W'), and the indices if they are asked for."""
        return max_pool(input, *self._arguments())

    def takes_bytes(self) -> bool:
        """Whether it is for uint8, too."""
        return takes_bytes(*self._arguments())

    def _arguments(self) -> tuple[Any, ...]:
        return (
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


def _geometry(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Geometry | None, bool]:
    """Kernel, stride and padding of rows and columns, and whether the size is rounded up.

    None for what our kernel does not compute.
    """
    kernel, padding = _pair(kernel_size), _pair(padding)
    is_large = kernel[0] * kernel[1] > MOST_PLACES
    is_wide = any(2 * pad > side for side, pad in zip(kernel, padding, strict=True))
    if is_large or is_wide or return_indices or _pair(dilation) != (1, 1):
        return None, ceil_mode
    return (kernel, _pair(stride or kernel_size), padding), ceil_mode


def _pair(number: Any) -> tuple[int, int]:
    first, *rest = (number,) if isinstance(number, int) else number
    return (first, *rest) if rest else (first, first)  # pyright: ignore[reportReturnType]


def _fits(x: Any, geometry: Geometry, rounds_up: bool) -> bool:
    return (
        is_eager(x)
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and all(
            size > 0
            and side <= size + 2 * pad
            and not (rounds_up and (size + 2 * pad - side) % stride)
            for size, side, stride, pad in zip(x.shape[2:], *geometry, strict=True)
        )
        and not torch._C._are_functorch_transforms_active()
    )
