# SPDX-License-Identifier: BSD-3-Clause
"""Races in shared memory are found where they are, and our kernels have none."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

import fastdet
from tests.cuda_emulation import HERE, ROOT
from tests.cuda_emulation.counting import CountedLibrary, Race, racing
from tests.ops.test_every_op import ON_CUDA, bits, calls
from tests.ops.test_nms import random_boxes

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif("FASTDET_SANITIZE" in os.environ, reason="a sanitizer has its own hooks"),
]

NOTHING, SHUFFLE, WARP_BARRIER, BLOCK_BARRIER = range(4)


@pytest.fixture(scope="module")
def kernels() -> CountedLibrary:
    return CountedLibrary([HERE / "kernels_to_count.cu"], "kernels_to_count")


def kinds(races: list[Race]) -> set[tuple[str, str]]:
    return {(race.kind_before, race.kind_after) for race in races}


def test_a_lost_update_is_found(kernels):
    with kernels.racing() as races:
        kernels.functions.add((ctypes.c_int * 32)(), 32, NOTHING)
    assert ("write", "write") in kinds(races)
    assert ("write", "read") in kinds(races)
    assert {race.kernel for race in races} == {"cuda_emulation: add_kernel"}
    assert all("kernels_to_count.cu:" in race.before for race in races)


@pytest.mark.parametrize("between", [SHUFFLE, WARP_BARRIER, BLOCK_BARRIER])
@pytest.mark.parametrize("name", ["add", "pass_on"])
def test_what_orders_the_lanes_of_a_warp(kernels, name, between):
    with kernels.racing() as races:
        getattr(kernels.functions, name)((ctypes.c_int * 32)(), 32, between)
    assert not races


@pytest.mark.parametrize("name", ["add", "pass_on"])
def test_cuda_promises_no_order_of_a_shuffle(kernels, name):
    with kernels.racing(talks_order=False) as races:
        getattr(kernels.functions, name)((ctypes.c_int * 32)(), 32, SHUFFLE)
    assert races


@pytest.mark.parametrize(("between", "found"), [(WARP_BARRIER, True), (BLOCK_BARRIER, False)])
@pytest.mark.parametrize("name", ["add", "pass_on"])
def test_a_barrier_of_a_warp_does_not_order_two_warps(kernels, name, between, found):
    with kernels.racing() as races:
        getattr(kernels.functions, name)((ctypes.c_int * 64)(), 64, between)
    assert bool(races) == found


def test_a_read_before_another_lane_writes_is_found(kernels):
    with kernels.racing() as races:
        kernels.functions.pass_on((ctypes.c_int * 64)(), 64, NOTHING)
    assert ("read", "write") in kinds(races)


def test_atomics_and_neighbouring_bytes_are_no_race(kernels):
    with kernels.racing() as races:
        kernels.functions.histogram((ctypes.c_int * 32)(), 4)
        kernels.functions.bytes((ctypes.c_int * 32)())
    assert not races


@pytest.mark.parametrize("is_volatile", [False, True])
def test_an_atomic_and_a_read_race(kernels, is_volatile):
    with kernels.racing() as races:
        kernels.functions.signal_others((ctypes.c_int * 32)(), int(is_volatile))
    assert ("read", "atomic") in kinds(races)


@pytest.mark.parametrize(("between", "found"), [(WARP_BARRIER, True), (BLOCK_BARRIER, False)])
@pytest.mark.parametrize("copy", [0, 1])
def test_bits_that_are_set_while_others_read_them(kernels, copy, between, found):
    out = (ctypes.c_int * 64)()
    with kernels.racing() as races:
        kernels.functions.resolve_front(out, copy, between)
    assert list(out) == [1] * 64
    assert (("atomic", "read") in kinds(races)) == found
    assert bool(races) == found


def test_the_first_call_of_a_process_looks_at_all_shared_memory():
    script = """
import ctypes
from tests.cuda_emulation import HERE
from tests.cuda_emulation.counting import CountedLibrary
library = CountedLibrary([HERE / "kernels_to_count.cu"], "kernels_to_count")
with library.racing() as races:
    library.functions.resolve_front((ctypes.c_int * 64)(), 0, 0)
    library.functions.resolve_front((ctypes.c_int * 64)(), 1, 0)
assert len({race.kernel for race in races}) == 2, races
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_nothing_is_found_only_where_kernels_ran():
    with pytest.raises(AssertionError, match="no emulated kernel"), racing():
        pass


@pytest.mark.parametrize("name", ON_CUDA)
def test_our_kernels_have_no_race(name):
    with racing() as races:
        bits(calls(65)[name])
    assert races == []


def test_nms_has_no_race_where_boxes_wait_long():
    # Each box waits for the one before it, longer than the rounds before the fronts are: so the
    # lanes of a front read and set the same words in turn.
    left = -4.0 * torch.arange(300)
    boxes = torch.stack([left, 0 * left, left + 10, 0 * left + 10], 1)
    with racing() as races:
        kept = fastdet.nms(boxes, left, 0.4)
    assert kept.tolist() == list(range(0, 300, 2))
    assert races == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorting_tiles_of_scores_has_no_race(dtype):
    boxes, scores = (x.expand(65, 2049, *x.shape[1:]) for x in random_boxes(2049, dtype=dtype))
    counts = torch.tensor([2049, *[0] * 64])
    with racing() as races:
        fastdet.ops.nms_padded(boxes, scores, 0.4, 9, None, counts)
    assert races == []
