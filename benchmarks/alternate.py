# SPDX-License-Identifier: BSD-3-Clause
"""Times several ways of doing one thing in turn, so that a slow moment slows all of them.

A round times each side once. A side too quick for the clock runs many times in its turn, so that a
turn takes a millisecond at least.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Side = Callable[[], Any]

SHORTEST_TURN = 1e-3  # seconds


class Rounds(NamedTuple):
    """How long a case may take."""

    seconds: float  # of all turns together; the round that passes it is the last
    least: int
    most: int


class Turns(NamedTuple):
    """A side's turns: how many calls each had, and each one's seconds."""

    calls: int
    seconds: list[float]

    def per_call(self) -> list[float]:
        """Seconds of a call, round by round."""
        return [turn / self.calls for turn in self.seconds]


def keep_freed_memory() -> None:
    """Lets no side pay for memory that another side's turn gave back to the system.

    Puts glibc's allocator into the state that it reaches in a long-running process: it keeps blocks
    of up to 32 MiB, and larger ones are new from the system each time. No effect elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def timed(side: Side, calls: int) -> float:
    """Seconds of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        side()
    return time.perf_counter() - start


def alternate(
    sides: Mapping[str, Side], rounds: Rounds, clock: Callable[[Side, int], float] = timed
) -> dict[str, Turns]:
    """Every side's turns; each side must have run before. The clock gives the seconds of calls."""
    turns = {
        name: Turns(max(1, round(SHORTEST_TURN / clock(side, 1))), [])
        for name, side in sides.items()
    }
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        used = 0.0
        for done in range(rounds.most):
            if done >= rounds.least and used >= rounds.seconds:
                break
            for name, side in sides.items():
                turns[name].seconds.append(clock(side, turns[name].calls))
                used += turns[name].seconds[-1]
    finally:
        if collecting:
            gc.enable()
    return turns
