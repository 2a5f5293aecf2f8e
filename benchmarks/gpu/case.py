# SPDX-License-Identifier: BSD-3-Clause
"""One piece of work on one workload on a GPU: its sides, its floor, and how it is measured.

Each call of a side gets the next of several copies of the inputs, which together exceed the L2
cache, so that inputs come from memory. Inputs of a few KB are an exception, as they are in a model:
there are at most MOST_COPIES. Outputs and workspaces lie where torch's allocator puts them.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.alternate import Rounds, Side, alternate
from benchmarks.case import ratio
from benchmarks.errors import error
from benchmarks.gpu.device import Device
from benchmarks.results import Row, SideResult

MOST_COPIES = 32
PROFILED_CALLS = 4

Prepare = Callable[..., Side]  # of a copy of the inputs

THREE_TIMES = 3.0  # the goal of every operator: docs/kernels.md


@dataclass(frozen=True, kw_only=True)
class GpuCase:
    """What a suite hands over.

    Attributes:
        op: fastdet's name of the operator, or a detector.
        workload: its inputs in words.
        inputs: tensors, moved to the device and copied.
        sides: by name, what runs on a copy; "fastdet" is the first, peers follow.
        bytes: what no implementation is spared reading and writing.
        exact: the result in float64, or the CPU's; None: no comparison.
        compared: what of our result `exact` gives.
        target_ms, target: our time, and torchvision's over ours, that are promised.
        rounds: how long; None: the device's.
    """

    op: str
    workload: str
    inputs: tuple[Tensor, ...]
    sides: Mapping[str, Prepare]
    bytes: int | None = None
    exact: Callable[..., Any] | None = None
    compared: Callable[[Any], Any] = lambda result: result
    target_ms: float | None = None
    target: float | None = THREE_TIMES
    rounds: Rounds | None = None


def forward(function: Callable[..., Any]) -> Prepare:
    """Calls the function."""
    return lambda *inputs: lambda: function(*inputs)


def copies(inputs: tuple[Tensor, ...], device: Device) -> list[tuple[Tensor, ...]]:
    """The inputs on the device, as often as it takes to exceed its L2 cache, strides kept."""
    moved = tuple(t.to(device.name) for t in inputs)
    size = sum(t.nbytes for t in moved)
    count = -(-device.rotated_bytes // size) if size else 1
    more = range(min(max(2, count), MOST_COPIES) - 1 if size else 0)
    return [moved, *(tuple(t.clone() for t in moved) for _ in more)]


def in_turn(sides: list[Side]) -> Side:
    """A side whose calls go round."""
    next_side = itertools.cycle(sides).__next__
    return lambda: next_side()()


def errors(case: GpuCase, inputs: tuple[Tensor, ...]) -> dict[str, float | None]:
    """Each side's error on the inputs; its first run, too."""
    found = {name: prepare(*inputs)() for name, prepare in case.sides.items()}
    if case.exact is None:
        return dict.fromkeys(found)
    found["fastdet"] = case.compared(found["fastdet"])
    exact = case.exact(*inputs)
    return {name: error(result, exact) for name, result in found.items()}


def measure(case: GpuCase, device: Device, bandwidth: float) -> Row:
    """The case's row; bandwidth in 10^9 bytes a second."""
    rotated = copies(case.inputs, device)
    their_errors = errors(case, rotated[0])
    sides: dict[str, Side] = {}
    for name, prepare in case.sides.items():
        prepared = [prepare(*copy) for copy in rotated]
        for side in prepared:
            side()
        sides[name] = in_turn(prepared)
    device.wait()
    calls = PROFILED_CALLS if case.inputs else 1  # a detector's call is thousands of events
    work = {name: device.work(side, calls) for name, side in sides.items()}
    turns = alternate(sides, case.rounds or device.rounds, device.clock)
    seconds = {name: turn.per_call() for name, turn in turns.items()}
    return Row(
        case.op,
        case.workload,
        torch.get_num_threads(),
        sides={
            name: SideResult(
                1e3 * statistics.median(own),
                ratio(own, seconds["fastdet"]),
                their_errors[name],
                work[name],
            )
            for name, own in seconds.items()
        },
        floor_ms=1e-6 * case.bytes / bandwidth if case.bytes else None,
        floor_kind="memory" if case.bytes else "",
        target=case.target,
        target_ms=case.target_ms,
    )
