# SPDX-License-Identifier: BSD-3-Clause
"""One operator on one workload: its sides, its floor, its exact result, and how it is measured."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.alternate import Rounds, Side, Turns, alternate
from benchmarks.errors import error
from benchmarks.results import Point, Row, SideResult

FLOOR = "floor"  # its name among the sides


@dataclass(frozen=True, kw_only=True)
class Case:
    """One benchmark case, as a suite defines it.

    Attributes:
        op: fastdet's name of the operator.
        workload: its inputs in words.
        sides: the same work by name; "fastdet" is the first, torchvision and other peers follow.
        floor: the memory traffic (`ceilings.stream`) or other work that every implementation
            needs. It is timed in turn with the sides.
        operations: arithmetic that every implementation needs; a fused multiply-add counts as one.
        exact: the result in float64.
        target, growth, point: see `Row`.
    """

    op: str
    workload: str
    sides: dict[str, Side]
    floor: Side | None = None
    operations: float = 0
    exact: Callable[[], Any] | None = None
    target: float | None = None
    growth: bool = False
    point: Point | None = None


def errors(case: Case) -> dict[str, float | None]:
    """Each side's error. This is also the first run of every side, its warm-up."""
    results = {name: side() for name, side in case.sides.items()}
    if case.exact is None:
        return dict.fromkeys(results)
    exact = case.exact()
    return {name: error(result, exact) for name, result in results.items()}


def measure(
    case: Case, threads: int, rounds: Rounds, fma: float, errors: dict[str, float | None]
) -> tuple[Row, dict[str, Turns]]:
    """The case's row, and the turns that it sums up.

    Args:
        case: what to measure; every side must have run before.
        threads: torch's present number of threads.
        rounds: how long.
        fma: the ceiling of multiply-adds, 10^9 a second.
        errors: from `errors`.
    """
    sides = dict(case.sides)
    if case.floor:
        sides[FLOOR] = case.floor
        case.floor()
    turns = alternate(sides, rounds)
    seconds = {name: turn.per_call() for name, turn in turns.items()}
    milliseconds = {name: 1e3 * statistics.median(s) for name, s in seconds.items()}
    memory, arithmetic = milliseconds.get(FLOOR, 0.0), 1e-6 * case.operations / fma
    row = Row(
        case.op,
        case.workload,
        threads,
        sides={
            name: SideResult(
                milliseconds[name], ratio(seconds[name], seconds["fastdet"]), errors[name]
            )
            for name in case.sides
        },
        floor_ms=max(memory, arithmetic) or None,
        floor_kind="memory" if memory >= arithmetic else "arithmetic",
        target=case.target,
        growth=case.growth,
        point=case.point,
    )
    return row, turns


def ratio(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratio over the rounds."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, median, high
