# SPDX-License-Identifier: BSD-3-Clause
"""A deformable convolution as a ResNet's third stage or a head has it."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.workloads import seeded

CHANNELS, TAPS = 256, 9
PADDING = 1


class DeformConv(NamedTuple):
    """The tensors of `deform_conv2d`, in its order; mask is None for v1."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor
    mask: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """Those that there are."""
        return [x for x in self if x is not None]

    @property
    def positions(self) -> int:
        """Of the output."""
        return self.offset.size(2) * self.offset.size(3)

    @property
    def multiply_adds(self) -> int:
        """Of the products, forward."""
        return CHANNELS * CHANNELS * TAPS * self.positions

    @property
    def words(self) -> str:
        """The workload."""
        height, width = self.offset.shape[2:]
        version = "v1" if self.mask is None else "v2"
        return f"{version}, {CHANNELS} -> {CHANNELS}, 3 x 3, {height} x {width}"

    def leaves(self, dtype: torch.dtype = torch.float32) -> "DeformConv":
        """A copy with gradients."""
        return DeformConv(
            *(None if x is None else x.detach().to(dtype).requires_grad_() for x in self)  # type: ignore[arg-type]
        )


def deform_conv(mask: bool, small: bool = False) -> DeformConv:
    """One image; the offsets are a few pixels. `small`: of a hundredth of the pixels."""
    generator = seeded(31)
    height, width = (10, 15) if small else (100, 152)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return DeformConv(
        draw(1, CHANNELS, height, width),
        2 * draw(1, 2 * TAPS, height, width),
        draw(CHANNELS, CHANNELS, 3, 3) / 48,
        draw(CHANNELS),
        draw(1, TAPS, height, width).sigmoid() if mask else None,
    )
