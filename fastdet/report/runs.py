# SPDX-License-Identifier: BSD-3-Clause
"""The table of experiments: one row for each training, from the files in its folder alone.

A row is of the epoch with the highest val/AP, all numbers of it from the same validation. Of the
options the table has those in which the runs differ.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from fastdet.files import refuse_existing, replacing
from fastdet.report.charts import Line, line_chart
from fastdet.report.page import html_table, write_page
from fastdet.training.metrics_log import Row, is_log, read_metrics
from fastdet.training.options import RunsFormat
from fastdet.training.options_file import read_any_options
from fastdet.training.run_record import read_record

APS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
ALWAYS = ("model", "backbone", "epochs")  # options
# Not what an experiment is about.
NEVER = (
    "out",
    "hypothesis",
    "loggers",
    "workers",
    "validate_every",
    "device",
    "preset",
    "max_pixels",
)
PLOTS = ("val/AP", "val/loss")
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: its folder, for people.
        options: of options.yaml.
        rows: of metrics.csv.
        sessions: of run.yaml.
        fingerprint: of the validation data; runs with others are not comparable.
    """

    name: str
    options: dict[str, Any]
    rows: list[Row]
    sessions: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str | None = None

    @property
    def validations(self) -> list[Row]:
        """The rows with a validation."""
        return [row for row in self.rows if "val/AP" in row]

    @property
    def best(self) -> Row:
        """The validation with the highest AP; empty if there was none."""
        return max(self.validations, key=lambda row: row["val/AP"], default={})

    @property
    def seconds(self) -> float:
        """Of all sessions, with validation."""
        return sum(session.get("seconds", 0.0) for session in self.sessions)


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads, and lines below it."""

    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The trainings in folders, and in their subfolders. Other programs' metrics.csv are left out.

    Raises:
        FileNotFoundError: a folder without a training.
        ValueError: a broken file.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        files = sorted(folder.rglob("metrics.csv")) if folder.is_dir() else []
        logs = [file for file in files if file.is_file() and is_log(file)]
        if not logs:
            raise FileNotFoundError(f"{folder}: no training (metrics.csv) in it or below it")
        for log in logs:
            found.setdefault(log.parent.resolve(), read_run(log.parent))
    return list(found.values())


def read_run(folder: Path) -> Run:
    """The training in a folder, of any version; options and record are empty where it has none."""
    options, record = folder / "options.yaml", folder / "run.yaml"
    content: dict[str, Any] = read_record(record) if record.is_file() else {"sessions": []}
    return Run(
        name=folder.as_posix(),
        options=read_any_options(options) if options.is_file() else {},
        rows=read_metrics(folder / "metrics.csv"),
        sessions=content["sessions"],
        fingerprint=content.get("data", {}).get("val", {}).get("fingerprint"),
    )


def chosen(runs: Sequence[Run], conditions: Sequence[str], sort: str | None) -> list[Run]:
    """The runs that meet all conditions, best first.

    Args:
        runs: the runs.
        conditions: "option=value" or "option!=value", as options.yaml has it.
        sort: a metric such as AP50, best first; an option, ascending; None: as they come.

    Raises:
        ValueError: a condition of another form; a name that no run has.
    """
    kept = list(runs)
    for condition in conditions:
        name, equals, value = condition.partition("=")
        unlike, name = name.endswith("!"), name.removesuffix("!")
        if not equals:
            raise ValueError(f"filter: expected option=value or option!=value, got {condition}")
        _check_known(name, "filter", runs)
        kept = [run for run in kept if (_text(run.options.get(name)) == value) != unlike]
    if sort is None:
        return kept
    if any(f"val/{sort}" in run.best for run in runs):
        return sorted(kept, key=lambda run: -run.best.get(f"val/{sort}", -1.0))
    _check_known(sort, "sort", runs)
    return sorted(kept, key=lambda run: _sort_key(run.options.get(sort)))


def _check_known(name: str, option: str, runs: Sequence[Run]) -> None:
    known = sorted({key for run in runs for key in run.options})
    if name not in known:
        raise ValueError(f"{option}: expected one of {', '.join(known)}, got {name}")


def _sort_key(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))


def table_of(runs: Sequence[Run], base: Run | None = None) -> Table:
    """The table of runs.

    Args:
        runs: one row each.
        base: APs are differences to this one's, except in its own row.
    """
    differing = [
        name
        for name in dict.fromkeys(name for run in runs for name in run.options)
        if name not in (*NEVER, *ALWAYS) and len({_text(run.options.get(name)) for run in runs}) > 1
    ]
    options = [*ALWAYS, *differing]
    head = ["run", *options, "best epoch", *APS, "loss", "val/loss", "seconds", "MiB"]
    rows = [
        [run.name, *(_text(run.options.get(name)) for name in options), *_numbers(run, base)]
        for run in runs
    ]
    return Table(head, rows, _notes(runs))


def _numbers(run: Run, base: Run | None) -> list[str]:
    best = run.best
    losses = [
        row["loss"] for row in run.rows if "loss" in row and row["step"] <= best.get("step", 0)
    ]
    memory = max((session.get("memory_mib", 0) for session in run.sessions), default=0)
    return [
        f"{best['epoch'] + 1:.0f}" if best else ABSENT,
        *(_metric(run, f"val/{name}", base) for name in APS),
        f"{losses[-1]:.3f}" if losses and best else ABSENT,
        f"{best['val/loss']:.3f}" if "val/loss" in best else ABSENT,
        f"{run.seconds:.0f}" if run.sessions else ABSENT,
        f"{memory}" if memory else ABSENT,
    ]


def _metric(run: Run, name: str, base: Run | None) -> str:
    value = run.best.get(name, -1.0)
    if value < 0:
        return ABSENT
    theirs = -1.0 if base is None or base is run else base.best.get(name, -1.0)
    return f"{value:.3f}" if theirs < 0 else f"{value - theirs:+.3f}"


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = [
        f"{run.name}: {' '.join(str(run.options['hypothesis']).split())}"
        for run in runs
        if run.options.get("hypothesis")
    ]
    if len({run.fingerprint for run in runs}) > 1:
        notes.append("Not all of these runs were validated on the same data.")
    return notes


def _text(value: Any) -> str:
    if value is None or value == []:
        return ABSENT
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- formats -------------------------------------------------------------------------------------


def as_markdown(table: Table) -> str:
    """A table of Markdown, and the notes as a list."""

    def literal(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(literal, cells))} |"

    first = table.head.index("best epoch")
    rule = [" --- " if i < first else " ---: " for i in range(len(table.head))]
    lines = [line(table.head), f"|{'|'.join(rule)}|", *map(line, table.rows)]
    notes = [f"- {literal(note)}" for note in table.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def as_csv(table: Table) -> str:
    """Comma-separated values; an absent one is empty. Notes are left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows(["" if cell == ABSENT else cell for cell in row] for row in table.rows)
    return text.getvalue()


def curves(runs: Sequence[Run], metric: str) -> str:
    """A chart of a metric over the epochs, one line for each run, as SVG.

    Raises:
        ValueError: no run has the metric.
    """
    lines = [
        Line(
            run.name,
            [row["epoch"] + 1 for row in run.validations if metric in row],
            [row[metric] for row in run.validations if metric in row],
        )
        for run in runs
    ]
    if not any(len(line.x) for line in lines):
        known = sorted({name for run in runs for row in run.validations for name in row})
        raise ValueError(f"expected a metric of a validation, got {metric}: {', '.join(known)}")
    return line_chart(lines, "epoch", metric.removeprefix("val/"))


def as_sections(table: Table, runs: Sequence[Run], metrics: Sequence[str]) -> list[str]:
    """HTML fragments: the table, the notes, and a chart for each metric."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    rows = html_table(table.head, table.rows, table.head.index("best epoch"))
    charts = [
        f"<section><h2>{escape(metric)}</h2>{curves(runs, metric)}</section>" for metric in metrics
    ]
    return [f"<section>{rows}<ul>{notes}</ul></section>", *charts]


def write_runs(
    folders: Sequence[Path],
    sort: str | None = None,
    conditions: Sequence[str] = (),
    base: Path | None = None,
    format: RunsFormat = "table",
    plot: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Prints or writes the table of runs; see `fastdet runs --help` for the arguments.

    Raises:
        FileNotFoundError: a folder without a training.
        FileExistsError: `out` exists.
        ValueError: a broken file; a condition, metric or option that no run has; html or a plot
            without `out`.
    """
    if (format == "html" or plot) and out is None:
        raise ValueError("out: expected a file for the page, such as runs.html")
    if plot and format != "html":
        raise ValueError(f"plot: expected --format html, got {format}")
    if out is not None:
        refuse_existing(out, overwrite)
    runs = chosen(find_runs(folders), conditions, sort)
    if not runs:
        raise ValueError("filter: no run meets the conditions")
    compared = None
    if base is not None:
        of_base = read_run(base)
        compared = next((run for run in runs if run.rows == of_base.rows), of_base)
    table = table_of(runs, compared)
    if format == "html":
        assert out is not None
        sections = as_sections(table, runs, plot or PLOTS)
        write_page(out, "fastdet runs", f"{len(runs)} trainings.", sections)
    elif format == "table":
        _print(table, out)
    else:
        _write(as_markdown(table) if format == "markdown" else as_csv(table), out)


def _print(table: Table, out: Path | None) -> None:
    """As a table of the terminal, as wide as it must be."""
    shown = RichTable(*(Column(name, no_wrap=True) for name in table.head))
    for row in table.rows:
        shown.add_row(*map(Text, row))  # a name in brackets is no markup
    text = io.StringIO()
    console = Console(file=text, width=10_000)
    console.print(shown)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)
    _write("\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n", out)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
