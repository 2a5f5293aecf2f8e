# SPDX-License-Identifier: BSD-3-Clause
"""Atomic replacement of files: write a temporary file beside the target, then rename it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`; if the block ends without an error, it becomes `path`.

    Args:
        path: the file to create or replace; its folder is created if it is missing.

    Yields:
        A path with the same suffix, on the same file system, so that the rename is atomic.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
