# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet check`: runs the check with a progress bar, prints the report and writes its files."""

import signal
import sys
from pathlib import Path

from rich.console import Console

from fastdet.checking.check import CheckOptions, Report, check_dataset
from fastdet.checking.page import write_json, write_page
from fastdet.checking.repair import write_repaired
from fastdet.checking.tables import tables, verdict
from fastdet.files import refuse_content, refuse_existing, refuse_inside
from fastdet.terminal import progress
from fastdet.training.stopping import Stopped


def run(
    data: Path,
    options: CheckOptions,
    *,
    out: Path | None = None,
    fix: Path | None = None,
    strict: bool = False,
    drawn: int = 12,
    overwrite: bool = False,
) -> int:
    """Checks a data set, prints and writes what was found, and repairs it where that is asked.

    Args:
        data: folder of the data set.
        options: what is checked.
        out: folder for check.json and check.html.
        fix: new folder for a repaired copy.
        strict: count warnings as errors in the exit code.
        drawn: pictures of each finding in check.html.
        overwrite: overwrite check.json and check.html.

    Returns:
        The exit code: 0, or 1 if there are errors.

    Raises:
        FileNotFoundError: no data set.
        FileExistsError: an output exists.
        ValueError: an option out of range.
        Stopped: Ctrl-C or SIGTERM; what was found until then is printed and written.
    """
    if drawn < 0:
        raise ValueError(f"drawn: expected 0 or more, got {drawn}")
    files = [] if out is None else [out / "check.json", out / "check.html"]
    for file in files:
        refuse_existing(file, overwrite)
    if fix is not None:
        refuse_content(fix)
        refuse_inside(fix, data if data.is_dir() else data.parent)
    try:
        with progress("annotations", "pictures") as bar:
            report = check_dataset(data, options, bar)
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, "stopped: nothing was written") from None
    console = Console()
    for table in tables(report):
        console.print(table)
    print(verdict(report))
    if files:
        write_json(files[0], report)
        write_page(files[1], report, drawn)
        print(f"report: {files[0]}, {files[1]}")
    if report.stopped is not None:
        _stop(report, files, fix)
    if fix is not None:
        _repair(report, fix)
    return int(report.count("error") > 0 or (strict and report.count("warning") > 0))


def _repair(report: Report, fix: Path) -> None:
    done = write_repaired(report, fix)
    print(
        f"repaired copy: {fix}{'' if any(done.values()) else ', where nothing had to be changed'}"
    )
    for what, count in done.items():
        if count:
            print(f"  {count} {what}")
    if not report.options.decode:
        print("  with --quick, pictures that break off were not looked for", file=sys.stderr)


def _stop(report: Report, files: list[Path], fix: Path | None) -> None:
    written = " and ".join(map(str, files)) if files else "nothing"
    code = report.stopped.code if isinstance(report.stopped, Stopped) else None
    number = code - 128 if isinstance(code, int) else signal.SIGINT
    message = (
        f"stopped after {len(report.files)} of {report.pictures} pictures; {written} "
        f"{'were' if files else 'was'} written"
    )
    message += "; no repaired copy was made" if fix is not None else ""
    raise Stopped(signal.Signals(number), message)
