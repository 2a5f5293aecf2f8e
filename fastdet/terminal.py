# SPDX-License-Identifier: BSD-3-Clause
"""The terminal: names from files, which may be any text, and a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def escape(text: str) -> str:
    """Text that rich prints as it is; what is not printable becomes a replacement character."""
    printable = (c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return markup.escape("".join(printable))


@contextmanager
def progress(name: str, then: str | None = None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere.

    Args:
        name: what is worked on.
        then: what it is from the first number on; None: the same.

    Yields:
        A function that takes how many are done, and of how many.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda number, of: bar.update(
            task, description=then or name, completed=number, total=of
        )
