# SPDX-License-Identifier: BSD-3-Clause
"""Multi-scale deformable attention, beside the grid_sample form that libraries run on a CPU.

The floor of forward reads the arguments once and writes the output; of the value it reads only the
pixels of the samples where these are fewer. Backward reads the output's gradient, too, and writes
the gradients of all arguments.
"""

import pytest
import torch

import fastdet
from benchmarks.attention import CHANNELS, HEADS, Attention, attention, by_grid_sample
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import backward

TARGET = 8.0

both_sizes = pytest.mark.parametrize("queries", [300, 5440])


def bytes_read(a: Attention) -> int:
    """Of the arguments."""
    sampled = 4 * a.weights.numel() * CHANNELS * a.value.element_size()
    return min(a.value.nbytes, sampled) + a.locations.nbytes + a.weights.nbytes


def bytes_of_output(a: Attention) -> int:
    return a.locations.size(0) * a.locations.size(1) * HEADS * CHANNELS * 4


def multiply_adds(a: Attention) -> int:
    return 4 * a.weights.numel() * CHANNELS


def name(a: Attention) -> str:
    images, pixels = a.value.shape[:2]
    return f"{images} images of {pixels:,} pixels, {a.locations.size(1):,} queries"


@both_sizes
def bench_forward(beside: Beside, queries: int) -> None:
    a = attention(beside.size(queries), small=beside.run.quick)
    wide = a.leaves(torch.float64)
    beside(
        Case(
            op="ms_deform_attn",
            workload=name(a),
            sides={
                "fastdet": lambda: fastdet.ms_deform_attn(*a),
                "grid_sample": lambda: by_grid_sample(*a),
            },
            floor=stream(bytes_read(a), bytes_of_output(a)),
            operations=multiply_adds(a),
            exact=lambda: by_grid_sample(*wide).detach(),
            target=TARGET,
        )
    )


@both_sizes
def bench_backward(beside: Beside, queries: int) -> None:
    a = attention(beside.size(queries), small=beside.run.quick)
    ours, theirs, wide = a.leaves(), a.leaves(), a.leaves(torch.float64)
    beside(
        Case(
            op="ms_deform_attn",
            workload=f"{name(a)}, backward",
            sides={
                "fastdet": backward(lambda: fastdet.ms_deform_attn(*ours), ours.tensors),
                "grid_sample": backward(lambda: by_grid_sample(*theirs), theirs.tensors),
            },
            floor=stream(
                bytes_read(a) + bytes_of_output(a),
                a.value.nbytes + a.locations.nbytes + a.weights.nbytes,
            ),
            operations=2 * multiply_adds(a),
            exact=lambda: backward(lambda: by_grid_sample(*wide), wide.tensors)(),
            target=TARGET,
        )
    )
