# SPDX-License-Identifier: BSD-3-Clause
"""How pytest runs the suites: a bench function builds a Case and hands it to `beside`.

pytest-benchmark times one thing after another; here the sides of a case take turns
(`alternate.py`), and each side's turns are then recorded with pytest-benchmark as one group, so
that its tables, files and comparisons work as usual.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import ceilings, machine, results, tables
from benchmarks.alternate import Rounds, Turns, keep_freed_memory
from benchmarks.case import FLOOR, Case, errors, measure

ALL_THREADS = torch.get_num_threads()
THREADS = sorted({1, ALL_THREADS})

FULL = Rounds(seconds=1.5, least=3, most=30)
BRIEF = Rounds(seconds=0.5, least=3, most=10)
QUICK = Rounds(seconds=0.0, least=1, most=1)

QUICK_SIZE = 40


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastdet bench")
    group.addoption("--out", type=Path, help="write the result file")
    group.addoption("--brief", action="store_true", help="README's rows on all threads, few rounds")
    group.addoption("--quick", action="store_true", help="each case once, tiny: does it run at all")


def pytest_configure(config: pytest.Config) -> None:
    keep_freed_memory()
    config.stash[RUN] = Run(config)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Prints no letters of pytest between the lines of the cases, except for failures."""
    if report.skipped or (report.passed and report.when == "call"):
        return report.outcome, "", report.outcome.upper()
    return None


def pytest_terminal_summary(config: pytest.Config) -> None:
    run = config.stash[RUN]
    if run.result.rows:
        ops = [row.op for row in run.result.rows]
        workloads = [row.workload for row in run.result.rows]
        run.result.rows.sort(key=lambda row: (ops.index(row.op), workloads.index(row.workload)))
        tables.show(run.result)
        if out := config.getoption("--out"):
            results.write(out, run.result)


class Run:
    """What a session measures."""

    def __init__(self, config: pytest.Config) -> None:
        self.quick = bool(config.getoption("--quick"))
        self.brief = bool(config.getoption("--brief"))
        self.rounds = QUICK if self.quick else BRIEF if self.brief else FULL
        self.result = results.Result(machine.describe(), {})
        self.errors: dict[tuple[str, str], dict[str, float | None]] = {}

    def measure(self, case: Case, threads: int) -> tuple[results.Row, dict[str, Turns]]:
        """The case's row, which joins the result."""
        if str(threads) not in self.result.ceilings:
            rounds = QUICK if self.quick else ceilings.ROUNDS
            self.result.ceilings[str(threads)] = ceilings.measure(rounds)._asdict()
        key = case.op, case.workload
        # The first number of threads pays for the exact result.
        warm = self.errors.setdefault(key, {}) or errors(case)
        self.errors[key] = warm
        fma = self.result.ceilings[str(threads)]["fma"]
        row, turns = measure(case, threads, self.rounds, fma, warm)
        self.result.rows.append(row)
        return row, turns


RUN = pytest.StashKey[Run]()


@pytest.fixture(params=THREADS, ids=lambda n: f"threads={n}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch's number of threads while the case runs."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(ALL_THREADS)


class Beside:
    """Measures a case's sides beside each other."""

    def __init__(self, run: Run, threads: int, benchmark: BenchmarkFixture) -> None:
        self.run, self.threads, self.benchmark = run, threads, benchmark

    def size(self, n: int) -> int:
        """n, or a small number in quick mode."""
        return min(n, QUICK_SIZE) if self.run.quick else n

    def skip_if_short(self) -> None:
        """For a case of many seconds: skipped in a brief run, and run on all threads only."""
        if self.run.brief or self.threads != ALL_THREADS:
            pytest.skip("takes many seconds")

    def __call__(self, case: Case) -> None:
        if self.run.brief and case.growth:
            pytest.skip("--brief")
        row, turns = self.run.measure(case, self.threads)
        for name in [*row.sides, *([FLOOR] if case.floor else [])]:
            self._record(name, row, turns[name])
        print(tables.line(row), flush=True)

    def _record(self, name: str, row: results.Row, turns: Turns) -> None:
        self.benchmark._mode = "alternate"
        self.benchmark.name = name
        self.benchmark.group = f"{row.op}, {row.workload}, {row.threads} threads"
        stats = self.benchmark._make_stats(turns.calls)
        for seconds in turns.seconds:
            stats.update(seconds)


@pytest.fixture
def beside(threads: int, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Beside:
    """See `Beside`."""
    run = request.config.stash[RUN]
    if run.brief and threads != ALL_THREADS:
        pytest.skip("--brief")  # before the case makes its inputs
    return Beside(run, threads, benchmark)
