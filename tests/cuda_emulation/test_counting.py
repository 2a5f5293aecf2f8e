# SPDX-License-Identifier: BSD-3-Clause
"""Requests of small kernels are counted right, and no kernel of ours touches more sectors."""

import ctypes
import json
import os
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdet
from tests.cuda_emulation import HERE
from tests.cuda_emulation.counting import CountedLibrary, Counts, Site, counted
from tests.ops.test_every_op import ON_CUDA, Call, bits, boxes, calls, noise, rois_of

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif("FASTDET_SANITIZE" in os.environ, reason="a sanitizer has its own hooks"),
]


@pytest.fixture(scope="module")
def kernels() -> CountedLibrary:
    return CountedLibrary([HERE / "kernels_to_count.cu"], "kernels_to_count")


def aligned(*shape: int) -> Tensor:
    """Zeros whose first byte begins a line of 128 bytes."""
    size = torch.Size(shape).numel()
    storage = torch.zeros(size + 32, dtype=torch.int32)
    return storage[-storage.data_ptr() // 4 % 32 :][:size].view(shape)


def run(function: Any, *arguments: Tensor | int) -> None:
    """Calls a C function with the tensors' addresses."""
    function(*[ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments])


def site(counts: Counts, space: str, kind: str) -> Site:
    (found,) = (site for site in counts.sites if (site.space, site.kind) == (space, kind))
    return found


@pytest.mark.parametrize(("step", "sectors"), [(1, 4), (2, 8), (3, 12), (8, 32), (100, 32), (0, 1)])
def test_sectors_of_a_step(kernels, step, sectors):
    values, out = aligned(6400), aligned(64)
    with kernels.counted() as counts:
        run(kernels.functions.copy, values, out, 64, step)
    read, written = site(counts, "global", "read"), site(counts, "global", "write")
    assert (read.requests, read.lanes, read.asked) == (2, 64, 256)
    assert (read.sectors, read.ideal) == (2 * sectors, 8 if step else 2)
    assert (written.sectors, written.ideal) == (8, 8)
    assert read.where.startswith("tests/cuda_emulation/kernels_to_count.cu:")
    assert read.kernel == "cuda_emulation: copy_kernel"
    (kernel,) = counts.kernels
    assert (kernel.launches, kernel.blocks, kernel.warps) == (1, 1, 2)


def test_an_address_in_the_middle_of_a_sector_costs_one_more(kernels):
    values, out = aligned(64), aligned(32)
    with kernels.counted() as counts:
        run(kernels.functions.copy, values[1:], out, 32, 1)
    assert (site(counts, "global", "read").sectors, site(counts, "global", "read").ideal) == (5, 4)


def test_a_copy_of_16_bytes_is_one_request(kernels):
    with kernels.counted() as counts:
        run(kernels.functions.copy_fours, aligned(128), aligned(128))
    for kind in ("read", "write"):
        found = site(counts, "global", kind)
        assert (found.bytes, found.requests, found.sectors, found.cycles) == (16, 1, 16, 4)


def test_lanes_that_leave_a_loop_are_not_active(kernels):
    values = aligned(32, 32)
    with kernels.counted() as counts:
        run(kernels.functions.triangle, values, aligned(32))
    found = site(counts, "global", "read")
    assert (found.requests, found.lanes) == (32, 33 * 16)


@pytest.mark.parametrize(("padded", "passes"), [(False, 32), (True, 1)])
def test_bank_conflicts(kernels, padded, passes):
    with kernels.counted() as counts:
        run(kernels.functions.turn, aligned(32), int(padded))
    read, written = site(counts, "shared", "read"), site(counts, "shared", "write")
    assert (read.requests, read.sectors, read.ideal) == (32, 32 * passes, 32)
    assert (written.requests, written.sectors) == (32, 32)


@pytest.mark.parametrize("places", [1, 4, 32])
def test_atomics_at_one_address(kernels, places):
    with kernels.counted() as counts:
        run(kernels.functions.histogram, aligned(32), places)
    assert site(counts, "shared", "atomic").same == 32 // places
    assert site(counts, "global", "atomic").same == 1


def test_inputs_and_outputs_are_told_from_the_rest(kernels):
    values, out = aligned(64), aligned(64)
    with kernels.counted(inputs=[values]) as counts:
        for _ in range(2):
            run(kernels.functions.copy, values, out, 64, 1)
        run(kernels.functions.copy, out, aligned(64), 64, 1)
        counts.outputs.append(out)
    (kernel,) = counts.kernels
    assert (kernel.launches, kernel.read, kernel.written) == (3, 256, 256)


# ---- our kernels --------------------------------------------------------------------------------

MARGIN = 0.02
COMMITTED = HERE / "sector_efficiency.json"


def in_packs() -> list[Call]:
    """Calls with as many channels as packs of 16 bytes need; those of the table have fewer."""
    features = noise(2, 64, 24, 40).to(memory_format=torch.channels_last)
    rois, shapes = rois_of(boxes(65)), [(6, 8), (3, 4)]
    points, weights = noise(2, 65, 2, 2, 3, 2) * 0.5 + 0.5, noise(2, 65, 2, 2, 3)

    def attend(value: Tensor) -> Tensor:
        return fastdet.ms_deform_attn(value, shapes, points, weights)

    def convolve(x: Tensor) -> Tensor:
        return fastdet.deform_conv2d(x, noise(2, 18, 10, 12), noise(8, 64, 3, 3), padding=1)

    def pool(x: Tensor) -> Tensor:
        return fastdet.roi_align(x, rois, 3, 0.25, 2)

    return [
        Call(pool, (features,), True),
        Call(pool, (features.to(torch.bfloat16, memory_format=torch.channels_last),), True),
        Call(attend, (noise(2, 60, 2, 32),), True),
        Call(convolve, (noise(2, 64, 10, 12),), True),
    ]


def efficiencies() -> dict[str, float]:
    """Of each kernel, over all operators: ideal by touched sectors, and by passes through banks."""
    with counted() as counts:
        for call in [*(calls(65)[name] for name in ON_CUDA), *in_packs()]:
            bits(call)
    sums: dict[str, list[int]] = {}
    for found in counts.sites:
        ideal, touched = sums.setdefault(f"{found.kernel}, {found.space}", [0, 0])
        sums[f"{found.kernel}, {found.space}"] = [ideal + found.ideal, touched + found.sectors]
    return {key: round(ideal / touched, 3) for key, (ideal, touched) in sorted(sums.items())}


def test_no_kernel_touches_more_sectors_than_before():
    """`python -m tests.cuda_emulation.test_counting` renews the file where a change is meant."""
    committed, found = json.loads(COMMITTED.read_text()), efficiencies()
    assert found.keys() == committed.keys()
    worse = {key: (found[key], value) for key, value in committed.items()}
    assert not {key: pair for key, pair in worse.items() if pair[0] < pair[1] - MARGIN}


if __name__ == "__main__":
    COMMITTED.write_text(json.dumps(efficiencies(), indent=1) + "\n")
