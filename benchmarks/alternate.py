# SPDX-License-Identifier: BSD-3-Clause
"""Times several implementations in turn, so that a slow moment of the machine affects all of them.

A round times each implementation ("side") once. A side that is too fast for the clock runs many
times in its turn, so that a turn takes at least a millisecond.
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

    seconds: float  # of all turns together; the round that exceeds it is the last
    least: int
    most: int


class Turns(NamedTuple):
    """A side's turns: the number of calls in a turn, and the seconds of each turn."""

    calls: int
    seconds: list[float]

    def per_call(self) -> list[float]:
        """Seconds of a call, round by round."""
        return [turn / self.calls for turn in self.seconds]


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, so that no side pays for what another side released.

    Puts glibc's allocator into the state that it reaches in a long-running process: it keeps blocks
    of up to 32 MiB and takes larger ones from the system each time. No effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def timed(side: Side, calls: int) -> float:
    """Seconds that this many calls take."""
    start = time.perf_counter()
    for _ in range(calls):
        side()
    return time.perf_counter() - start


def alternate(
    sides: Mapping[str, Side], rounds: Rounds, clock: Callable[[Side, int], float] = timed
) -> dict[str, Turns]:
    """Every side's turns; each side must have run before. The clock gives the seconds of calls.

    A single round only shows that the sides run: a turn is then one call.
    """
    turns = {
        name: Turns(1 if rounds.most == 1 else max(1, round(SHORTEST_TURN / clock(side, 1))), [])
        for name, side in sides.items()
    }
    collecting = gc.isenabled()
    if rounds.most > 1:
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
