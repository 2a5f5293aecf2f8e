# SPDX-License-Identifier: BSD-3-Clause
"""Deformable convolution beside torchvision's.

The floor is the multiply-adds of the products: one for each output, channel and tap of each
position, and two in backward.
"""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

import fastdet
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.deform_conv import PADDING, DeformConv, deform_conv
from benchmarks.workloads import backward

TARGET = 4.0


def run(function: Callable[..., Tensor], c: DeformConv) -> Callable[[], Tensor]:
    """A call of torchvision's or our function."""
    return lambda: function(c.input, c.offset, c.weight, c.bias, padding=PADDING, mask=c.mask)


@torch.no_grad()
@pytest.mark.parametrize("mask", [False, True])
def bench_forward(beside: Beside, mask: bool) -> None:
    c = deform_conv(mask, small=beside.run.quick)
    wide = c.leaves(torch.float64)
    beside(
        Case(
            op="deform_conv2d",
            workload=c.words,
            sides={
                "fastdet": run(fastdet.deform_conv2d, c),
                "torchvision": run(torchvision.ops.deform_conv2d, c),
            },
            operations=c.multiply_adds,
            exact=run(torchvision.ops.deform_conv2d, wide),
            target=TARGET,
        )
    )


def bench_backward(beside: Beside) -> None:
    c = deform_conv(mask=True, small=beside.run.quick)
    ours, theirs, wide = c.leaves(), c.leaves(), c.leaves(torch.float64)
    reference = torchvision.ops.deform_conv2d
    beside(
        Case(
            op="deform_conv2d",
            workload=f"{c.words}, backward",
            sides={
                "fastdet": backward(run(fastdet.deform_conv2d, ours), ours.tensors),
                "torchvision": backward(run(reference, theirs), theirs.tensors),
            },
            operations=2 * c.multiply_adds,
            exact=lambda: backward(run(reference, wide), wide.tensors)(),
            target=TARGET,
        )
    )
