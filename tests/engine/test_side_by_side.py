# SPDX-License-Identifier: BSD-3-Clause
"""Images side by side: who computes them, with how many threads, and in which modes."""

import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
import torch

from fastdet.engine.side_by_side import side_by_side

seen = ContextVar("seen", default="nothing")


@pytest.fixture(params=[1, 2, 4, 6])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8])
def test_results_are_in_order(threads: int, count: int) -> None:
    assert side_by_side(lambda i: i * i, count) == [i * i for i in range(count)]
    assert torch.get_num_threads() == threads


def test_no_thread_is_left_over(threads: int) -> None:
    """Of four threads and seven images, four have one, two have two, and the last has all."""
    shares = {1: [1] * 7, 2: [1] * 6 + [2], 4: [1] * 4 + [2] * 2 + [4], 6: [1] * 6 + [6]}
    assert side_by_side(lambda _: torch.get_num_threads(), 7) == shares[threads]


def test_images_are_computed_at_the_same_time() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=60)
    try:
        side_by_side(lambda _: both.wait(), 2)  # alone, one would wait until the barrier breaks
    finally:
        torch.set_num_threads(before)


def test_modes_of_the_caller() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    token = seen.set("the caller's")

    def modes(_: int) -> tuple[object, ...]:
        made = torch.ones(1) @ torch.ones(1, 1)
        return (
            made.dtype,
            made.is_inference(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            seen.get(),
        )

    try:
        for inference in (True, False):
            for autocast in (True, False):
                with (
                    torch.no_grad(),
                    torch.inference_mode(inference),
                    torch.set_grad_enabled(False),
                    torch.autocast("cpu", torch.bfloat16, enabled=autocast),
                ):
                    assert side_by_side(modes, 2) == [modes(0)] * 2
    finally:
        seen.reset(token)
        torch.set_num_threads(before)


def test_an_error_ends_the_others(threads: int) -> None:
    begun: list[int] = []

    def fail(i: int) -> None:
        begun.append(i)
        raise ValueError(f"image {i}")

    with pytest.raises(ValueError, match="image"):
        side_by_side(fail, 100)
    assert len(begun) <= threads
    assert torch.get_num_threads() == threads
    assert side_by_side(lambda i: i, 3) == [0, 1, 2]
