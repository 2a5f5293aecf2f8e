# SPDX-License-Identifier: BSD-3-Clause
"""Two result files side by side.

Milliseconds of two runs differ with the load of the machine; ratios to torchvision differ less,
because both sides are measured in turn.

    python -m benchmarks.compare FIRST SECOND
"""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.results import Result
from benchmarks.tables import ABSENT, times
from fastdet.report.figures import three_digits


def table(first: Result, second: Result) -> Table:
    """The rows that are in both."""
    shown = Table("", "workload", box=box.SIMPLE, pad_edge=False)
    columns = ("threads", "ms before", "ms after", "ratio before", "ratio after", "change of it")
    for column in columns:
        shown.add_column(column, justify="right")
    earlier = {row.key: row for row in first.rows}
    for row in second.rows:
        if before := earlier.get(row.key):
            old, new = (r.torchvision.ratio[1] if r.torchvision else None for r in (before, row))
            shown.add_row(
                row.op,
                row.workload,
                str(row.threads),
                three_digits(before.sides["fastdet"].ms),
                three_digits(row.sides["fastdet"].ms),
                times(old),
                times(new),
                f"{new / old - 1:+.0%}" if old and new else ABSENT,
            )
    return shown


def main() -> None:
    """Prints the table."""
    first, second = (results.read(Path(name)) for name in sys.argv[1:3])
    Console(width=None if sys.stdout.isatty() else 180).print(table(first, second))


if __name__ == "__main__":
    main()
