# SPDX-License-Identifier: BSD-3-Clause
"""Deformable convolution on a GPU, beside torchvision's: the goals of docs/kernels.md."""

from collections.abc import Callable, Iterator

import torchvision
from torch import Tensor

import fastdet
from benchmarks.deform_conv import CHANNELS, PADDING, deform_conv
from benchmarks.gpu.case import GpuCase, Prepare, forward
from benchmarks.gpu.device import Device
from benchmarks.gpu.ops import backward_of

Cases = Iterator[GpuCase]

TWICE = 2.0  # the goal: docs/kernels.md


def run(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torchvision's or our function of the tensors."""
    return lambda input, offset, weight, bias, mask: function(
        input, offset, weight, bias, padding=PADDING, mask=mask
    )


def deform_conv2d(device: Device) -> Cases:
    """Of the gradients also the deterministic ones."""
    c = deform_conv(mask=True, small=device.small)
    arguments = sum(x.nbytes for x in c.tensors)
    output = 4 * CHANNELS * c.positions
    ours, theirs = run(fastdet.deform_conv2d), run(torchvision.ops.deform_conv2d)

    def exactly(prepare: Prepare) -> Callable[..., object]:
        return lambda *tensors: prepare(*(t.double() for t in tensors))()

    yield GpuCase(
        op="deform_conv2d",
        workload=c.words,
        inputs=tuple(c.tensors),
        sides={"fastdet": forward(ours), "torchvision": forward(theirs)},
        bytes=arguments + output,
        exact=exactly(forward(theirs)),
        target=TWICE,
    )
    for ordered in (False, True):
        yield GpuCase(
            op="deform_conv2d",
            workload=f"{c.words}, {'deterministic ' if ordered else ''}backward",
            inputs=tuple(c.tensors),
            sides={
                "fastdet": backward_of(ours, 5, ordered),
                "torchvision": backward_of(theirs, 5),
            },
            bytes=2 * arguments + output,
            exact=exactly(backward_of(theirs, 5)),
            target=TWICE,
        )


SUITES: tuple[Callable[[Device], Cases], ...] = (deform_conv2d,)
