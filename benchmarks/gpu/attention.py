# SPDX-License-Identifier: BSD-3-Clause
"""Deformable attention on a GPU, beside its grid_sample form: the goals of docs/kernels.md."""

from collections.abc import Callable, Iterator

from torch import Tensor

import fastdet
from benchmarks.attention import CHANNELS, HEADS, attention, by_grid_sample
from benchmarks.gpu.case import GpuCase, Prepare, forward
from benchmarks.gpu.device import Device
from benchmarks.gpu.ops import backward_of

Cases = Iterator[GpuCase]


def ms_deform_attn(device: Device) -> Cases:
    """Of the gradients also the deterministic ones."""
    for queries in (300, 5440):
        a = attention(device.size(queries), small=device.small)
        arguments = a.value.nbytes + a.locations.nbytes + a.weights.nbytes
        output = 4 * a.locations.size(0) * a.locations.size(1) * HEADS * CHANNELS
        name = f"2 images of {a.value.size(1):,} pixels, {a.locations.size(1):,} queries"

        def run(
            function: Callable[..., Tensor], shapes: list[tuple[int, int]] = a.shapes
        ) -> Callable[..., Tensor]:
            return lambda value, locations, weights: function(value, shapes, locations, weights)

        ours, theirs = run(fastdet.ms_deform_attn), run(by_grid_sample)

        def exactly(prepare: Prepare) -> Callable[..., object]:
            return lambda *tensors: prepare(*(t.double() for t in tensors))()

        yield GpuCase(
            op="ms_deform_attn",
            workload=name,
            inputs=a.tensors,
            sides={"fastdet": forward(ours), "grid_sample": forward(theirs)},
            bytes=arguments + output,
            exact=exactly(forward(theirs)),
        )
        for ordered in (False, True):
            yield GpuCase(
                op="ms_deform_attn",
                workload=f"{name}, {'deterministic ' if ordered else ''}backward",
                inputs=a.tensors,
                sides={
                    "fastdet": backward_of(ours, 3, ordered),
                    "grid_sample": backward_of(theirs, 3),
                },
                bytes=2 * arguments + output,
                exact=exactly(backward_of(theirs, 3)),
            )


SUITES: tuple[Callable[[Device], Cases], ...] = (ms_deform_attn,)
