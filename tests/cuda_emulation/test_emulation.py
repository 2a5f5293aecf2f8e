# SPDX-License-Identifier: BSD-3-Clause
import ctypes
import math
import os
import subprocess
import sys

import pytest
import torch

from fastdet.ops import batched_nms
from tests.cuda_emulation import (
    HERE,
    LANE_ORDERS,
    ROOT,
    compile_library,
    emulated_kernels,
    load,
    set_lane_order,
)
from tests.ops.test_every_op import ON_CUDA, bits, calls, noise
from tests.ops.test_nms import brute_force, hostile

pytestmark = pytest.mark.emulation


@pytest.mark.parametrize("name", ON_CUDA)
def test_cpu_and_cuda_kernels_agree_in_every_lane_order(name):
    call = calls(65)[name]
    expected = bits(call)
    library = load()
    for order in LANE_ORDERS:
        with emulated_kernels(order):
            before = library.cuda_emulation_num_launches()
            got = bits(call)
            assert library.cuda_emulation_num_launches() > before
        for a, b in zip(got, expected, strict=True):
            if a.is_floating_point():
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            else:
                assert a.equal(b)


@pytest.mark.parametrize("name", ON_CUDA)
def test_lane_order_changes_no_bit(name):
    call = calls(65)[name]
    torch.use_deterministic_algorithms(True)
    try:
        with emulated_kernels():
            expected = bits(call)
        for order in ("descending", "shuffled", "shuffled again"):
            with emulated_kernels(order):
                assert all(a.equal(b) for a, b in zip(bits(call), expected, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    sources = [HERE / "kernels_to_catch.cu", HERE / "block.cpp"]
    library = ctypes.CDLL(str(compile_library(sources, "kernels_to_catch")))
    for name in ("mirror", "part", "warp", "arrival", "leftovers", "large", "empty"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


NO_BARRIER, BARRIER_OF_WARP, BARRIER_OF_BLOCK = range(3)


def mirrored(kernels: ctypes.CDLL, order: str, barrier: int) -> list[int]:
    out = (ctypes.c_int * 96)()
    set_lane_order(kernels, order)
    assert kernels.mirror(out, barrier) == b""
    return list(out)


@pytest.mark.parametrize("order", LANE_ORDERS)
def test_a_barrier_makes_every_order_right(kernels, order):
    assert mirrored(kernels, order, BARRIER_OF_BLOCK) == list(range(95, -1, -1))


@pytest.mark.parametrize("barrier", [NO_BARRIER, BARRIER_OF_WARP])
def test_a_missing_barrier_changes_the_result(kernels, barrier):
    right = list(range(95, -1, -1))
    wrong = {order for order in LANE_ORDERS if mirrored(kernels, order, barrier) != right}
    assert {"ascending", "descending"} <= wrong


def test_lanes_at_different_barriers_are_an_error(kernels):
    set_lane_order(kernels, "ascending")
    message = kernels.part((ctypes.c_int * 96)()).decode()
    assert "lanes wait for each other forever" in message
    assert "lane 0 at" in message
    assert "kernels_to_catch.cu:" in message


@pytest.mark.parametrize("order", LANE_ORDERS)
def test_lanes_of_a_warp_hear_each_other(kernels, order):
    out = (ctypes.c_uint * 120)()
    set_lane_order(kernels, order)
    assert kernels.warp(out) == b""
    ballots, below, sums = out[0::3], out[1::3], out[2::3]
    assert ballots == [0xAAAAAAAA] * 32 + [0xAA] * 8
    assert below == [*range(1, 32), 31, *range(33, 40), 0xA5A5A5A5]  # undefined on a GPU
    assert sums == [sum(range(32))] * 32 + [sum(range(32, 40))] * 8


def test_blocks_run_in_several_orders(kernels):
    seen = set()
    for order in LANE_ORDERS:
        out, arrived = (ctypes.c_int * 8)(), ctypes.c_int(0)
        set_lane_order(kernels, order)
        assert kernels.arrival(out, ctypes.byref(arrived)) == b""
        assert sorted(out) == list(range(8))
        seen.add(tuple(out))
    assert {(0, 1, 2, 3, 4, 5, 6, 7), (7, 6, 5, 4, 3, 2, 1, 0)} < seen
    assert len(seen) == len(LANE_ORDERS)


@pytest.mark.skipif("FASTDET_SANITIZE" in os.environ, reason="see static_shared")
def test_shared_memory_of_another_block_is_no_number(kernels):
    out = (ctypes.c_double * 192)()
    set_lane_order(kernels, "ascending")
    assert kernels.leftovers(out) == b""
    numbers = {i: value for i, value in enumerate(out) if not math.isnan(value)}
    assert numbers == {0: 1.0, 96 + 1: 1.0}


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((2, 1, 1), (1024, 1, 1), b""),
        ((1, 65536, 1), (1, 1, 1), b"grid: expected 1 to (2147483647, 65535, 65535)"),
        ((1, 1, 65536), (1, 1, 1), b"got (1, 1, 65536)"),
        ((1, 0, 1), (1, 1, 1), b"got (1, 0, 1)"),
        ((1, 1, 1), (1, 1, 65), b"block: expected 1 to (1024, 1024, 64), got (1, 1, 65)"),
        ((1, 1, 1), (1024, 2, 1), b"a block has at most 1024 threads"),
    ],
)
def test_a_launch_that_a_gpu_refuses_is_an_error(kernels, grid, block, message):
    found = kernels.empty((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block))
    assert message in found if message else found == b""


@pytest.mark.skipif("FASTDET_SANITIZE" in os.environ, reason="see static_shared")
def test_shared_memory_beyond_48_kib_is_an_error(kernels):
    out = (ctypes.c_int * 32)()
    set_lane_order(kernels, "ascending")
    assert kernels.large(out, 8 << 10) == b""
    found = kernels.large(out, (9 << 10)).decode()
    assert found.startswith("shared memory: expected at most 49152 bytes, got 4")
    assert found.endswith(" of variables and 9216 at launch")


def test_the_context_fails_where_no_kernel_was_launched():
    with pytest.raises(AssertionError, match="no emulated kernel"), emulated_kernels():
        pass
    with emulated_kernels(launches=False):
        pass
    with pytest.raises(ZeroDivisionError), emulated_kernels():
        raise ZeroDivisionError


def test_the_context_emulates_operators_that_nobody_has_loaded():
    script = """
import torch
from tests.cuda_emulation import emulated_kernels
with emulated_kernels():
    from fastdet.ops import nms
    nms(torch.rand(9, 4), torch.rand(9), 0.5)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["spread", "one spot", "giants", "all sizes"])
def test_suppression_by_several_blocks_is_the_same_in_every_order(name):
    boxes, n = hostile(1200)[name], 1200
    scores = torch.randint(0, 500, (n,), generator=torch.Generator().manual_seed(1)).float()
    ids = torch.arange(n) % 7
    expected = brute_force(boxes, scores, 0.4, ids)
    for order in LANE_ORDERS:
        with emulated_kernels(order):
            assert batched_nms(boxes, scores, ids, 0.4).tolist() == expected


@pytest.mark.parametrize("width", [260, 261])
def test_masks_of_several_strips_have_the_same_edges_in_every_order(width):
    masks = noise(2, 300, width) > 1
    expected = torch.ops.fastdet.mask_edges(masks)
    for order in LANE_ORDERS:
        with emulated_kernels(order):
            got = torch.ops.fastdet.mask_edges(masks)
        assert all(a.equal(b) for a, b in zip(got, expected, strict=True))
