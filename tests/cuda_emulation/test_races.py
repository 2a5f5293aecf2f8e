# SPDX-License-Identifier: BSD-3-Clause
"""Races in shared memory are found where they are, and our kernels have none."""

import ctypes
import os

import pytest

from tests.cuda_emulation import HERE
from tests.cuda_emulation.counting import CountedLibrary, Race, racing
from tests.ops.test_every_op import ON_CUDA, bits, calls

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


@pytest.mark.parametrize("name", ON_CUDA)
def test_our_kernels_have_no_race(name):
    with racing() as races:
        bits(calls(65)[name])
    assert races == []
