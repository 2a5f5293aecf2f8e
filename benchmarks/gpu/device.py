# SPDX-License-Identifier: BSD-3-Clause
"""The device that is measured: its clock, its bandwidth, and what a call makes it do.

The CPU stands in where there is no GPU, so that the suites can be tried there: tiny, with the
host's clock, and without counts.
"""

import re
import statistics
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.alternate import Rounds, Side, alternate, timed
from benchmarks.results import GpuWork

# Calls in which the host waits for the device. The profiler itself ends with cudaDeviceSynchronize,
# which nobody else calls here.
WAIT = re.compile(r"cu(da)?(StreamSynchronize|EventSynchronize|Memcpy)(_v\d+)?")


@dataclass(frozen=True)
class Device:
    """What to measure on, and how much.

    Attributes:
        name: torch's, "cuda" or "cpu".
        small: tiny workloads, each once.
    """

    name: str
    small: bool

    @property
    def gpu(self) -> bool:
        return self.name == "cuda"

    @property
    def rounds(self) -> Rounds:
        """How long an operator is measured."""
        return Rounds(0.0, 1, 1) if self.small else Rounds(seconds=0.3, least=7, most=100)

    @property
    def rotated_bytes(self) -> int:
        """What the copies of a case's inputs take together: twice what the L2 cache holds."""
        if not self.gpu:
            return 0
        return max(100 * 10**6, 2 * torch.cuda.get_device_properties(0).L2_cache_size)

    def size(self, n: int) -> int:
        """n, or a small number of rows."""
        return min(n, 40) if self.small else n

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def clock(self, side: Side, calls: int) -> float:
        """Seconds of so many calls, one behind the other, from the first's start to the last's end.

        A host that cannot launch as fast as the GPU works is part of it.
        """
        if not self.gpu:
            return timed(side, calls)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            side()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)

    def work(self, side: Side, calls: int) -> GpuWork | None:
        """What one of so many calls makes the GPU do; None where nothing can be seen of it."""
        if not self.gpu:
            return None
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(calls):
                side()
            torch.cuda.synchronize()
        events = profiler.events() or []
        launched = [event for event in events if event.device_type.name == "CUDA"]
        waits = sum(WAIT.fullmatch(event.name) is not None for event in events)
        if not launched:
            return None
        us = sum(event.time_range.elapsed_us() for event in launched)
        return GpuWork(len(launched) / calls, waits / calls, 1e-3 * us / calls)

    def bandwidth(self) -> dict[str, float]:
        """10^9 bytes a second: of a copy, counting reads and writes, of a fill and of a sum."""
        size = 2**22 if self.small else 2**30
        source = torch.ones(size // 4, device=self.name)
        target = torch.empty_like(source)
        work = {
            "copy": (lambda: target.copy_(source), 2 * size),
            "write": (target.zero_, size),
            "read": (source.sum, size),
        }
        sides = {name: side for name, (side, _) in work.items()}
        for side in sides.values():
            side()
        turns = alternate(sides, self.rounds, self.clock)
        return {
            name: 1e-9 * work[name][1] / statistics.median(turn.per_call())
            for name, turn in turns.items()
        }
