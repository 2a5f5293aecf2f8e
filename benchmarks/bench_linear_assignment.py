# SPDX-License-Identifier: BSD-3-Clause
"""Linear assignment beside SciPy, which solves one problem after another.

The floor reads the costs once. Every method reads a row again for each step of each path, in
memory that its cache holds: how many steps there are depends on the costs.
"""

from dataclasses import replace

import pytest

import fastdet
from benchmarks.assignment import assigned_by_scipy, costs_of
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.results import Point

TARGETS = {(48, 300, 30): 4.0, (16, 300, 300): 3.0, (1, 2000, 2000): 1.0}


def case(problems: int, rows: int, columns: int) -> Case:
    """Both sides' columns; the error is against SciPy in float64."""
    cost = costs_of(problems, rows, columns)
    return Case(
        op="linear_assignment",
        workload=f"{problems} x {rows:,} x {columns:,}",
        sides={
            "fastdet": lambda: fastdet.linear_assignment(cost),
            "SciPy": lambda: assigned_by_scipy(cost),
        },
        floor=stream(reads=cost.nbytes, writes=8 * problems * rows),
        exact=lambda: assigned_by_scipy(cost.double()),
    )


@pytest.mark.parametrize(("problems", "rows", "columns"), TARGETS)
def bench_random_costs(beside: Beside, problems: int, rows: int, columns: int) -> None:
    sizes = problems, beside.size(rows), beside.size(columns)
    beside(replace(case(*sizes), target=TARGETS[problems, rows, columns]))


@pytest.mark.parametrize("side", [30, 100, 300, 1000])
def bench_growth(beside: Beside, side: int) -> None:
    side = beside.size(side)
    point = Point("linear_assignment, one square problem", "rows", side)
    beside(replace(case(1, side, side), growth=True, point=point))
