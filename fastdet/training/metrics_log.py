# SPDX-License-Identifier: BSD-3-Clause
"""The CSV log of a training: one row a logged step, one column a metric.

A validation's row has the step of the last training batch before it; steps count from 0.
Lightning's CSVLogger deletes the old file when a training resumes; this one keeps the rows before
the step that it resumes from. A row is appended as one line; a new column rewrites the file. A full
disk or a kill may leave the last line without its end: it is no row.
"""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from fastdet.files import replacing

Row = dict[str, float]


def read_metrics(path: Path) -> list[Row]:
    """Rows of a metrics file in step order; an empty cell is absent from its row.

    A last line without a line end is left out.

    Raises:
        ValueError: a cell that is no number.
    """
    lines, _ = _split_torn(path)
    reader = csv.DictReader(lines)
    try:
        return [{name: float(x) for name, x in row.items() if name and x} for row in reader]
    except ValueError as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def is_log(path: Path) -> bool:
    """Whether `MetricsLog` wrote the file, by its header."""
    with path.open(errors="replace") as file:
        header = file.readline()
    return header.startswith("step,") or not header.strip()


def _split_torn(path: Path) -> tuple[list[str], str]:
    """The complete lines of a file, and what is there of one more."""
    with path.open(newline="", errors="replace") as file:
        lines = file.read().splitlines(keepends=True)
    torn = lines.pop() if lines and not lines[-1].endswith("\n") else ""
    return lines, torn


class MetricsLog(Logger):
    """Lightning logger that writes a CSV file.

    Args:
        path: the file.
        first_step: steps done before this training resumes; the rows of later ones are dropped.
    """

    def __init__(self, path: Path, first_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[Row] = []
        if first_step > 0 and path.exists():
            if torn := _split_torn(path)[1]:
                print(f"{path}: removed its last line, which is torn: {torn[:80]!r}", flush=True)
            self.rows = [row for row in read_metrics(path) if row["step"] < first_step]
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        self._write_all()

    @property
    def name(self) -> str:
        """No name: the file is the log."""
        return ""

    @property
    def version(self) -> str:
        """No version: a training that resumes goes on in its file."""
        return ""

    @property
    def experiment(self) -> "MetricsLog":
        """The log itself."""
        return self

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Does nothing: they are in the checkpoint."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": float(step or 0), **metrics}
        self.rows.append(row)
        new_columns = [name for name in row if name not in self.columns]
        if new_columns:
            self.columns += new_columns
            self._write_all()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(_cells(row))

    def _write_all(self) -> None:
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(_cells(row) for row in self.rows)


def _cells(row: Row) -> dict[str, float]:
    return {name: int(x) if float(x).is_integer() else float(x) for name, x in row.items()}
