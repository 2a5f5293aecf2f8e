# SPDX-License-Identifier: BSD-3-Clause
"""Results as a person reads them on the screen."""

import itertools
import sys

from benchmarks.results import Result, Row
from fastdet.report.figures import three_digits

ABSENT = "\N{EN DASH}"


def times(value: float | None) -> str:
    """A ratio."""
    return ABSENT if value is None else f"{three_digits(value)}x"


def share(value: float | None) -> str:
    """An error: a power of ten is what matters."""
    return ABSENT if value is None else "0" if value == 0 else f"{value:.0e}"


def errors(row: Row) -> str:
    """Ours, and torchvision's."""
    theirs = row.torchvision
    return f"{share(row.sides['fastdet'].error)} / {share(theirs.error if theirs else None)}"


def others(row: Row) -> str:
    """Ratios of the peers that are not torchvision."""
    peers = [name for name in row.sides if name not in ("fastdet", "torchvision")]
    return ", ".join(f"{name} {times(row.sides[name].ratio[1])}" for name in peers)


def line(row: Row) -> str:
    """A row as it comes in."""
    sides = ", ".join(f"{name} {three_digits(side.ms)}" for name, side in row.sides.items())
    return f"{row.op}, {row.workload}, {row.threads} threads: {sides} ms"


def show(result: Result) -> None:
    """Prints the rows, op by op; what misses its target is red."""
    # Imported here, so that the rest works where rich is not installed.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("", box=box.SIMPLE, pad_edge=False)
    for column in ("threads", "fastdet ms", "torchvision ms", "ratio", "quartiles", "target"):
        table.add_column(column, justify="right")
    table.add_column("x floor", justify="right")
    table.add_column("error, ours / theirs")
    table.add_column("other peers")
    for op, rows in itertools.groupby(result.rows, key=lambda row: row.op):
        table.add_section()
        table.add_row(f"[bold]{op}")
        for row in rows:
            table.add_row(*cells(row, result.threads), style="red" if missed(row, result) else "")
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def missed(row: Row, result: Result) -> bool:
    """Whether the row's target is not reached."""
    if row.target is None or row.peer is None or row.threads != result.threads:
        return False
    return row.peer.ratio[1] < row.target


def cells(row: Row, all_threads: int) -> list[str]:
    """A row of `show`."""
    theirs = row.torchvision
    low, ratio, high = theirs.ratio if theirs else (None, None, None)
    return [
        row.workload,
        str(row.threads),
        three_digits(row.sides["fastdet"].ms),
        three_digits(theirs.ms) if theirs else ABSENT,
        times(ratio),
        f"{three_digits(low)} - {three_digits(high)}" if low and high else "",
        times(row.target) if row.target and row.threads == all_threads else "",
        three_digits(row.times_floor) if row.times_floor else "",
        errors(row),
        others(row),
    ]
