# SPDX-License-Identifier: BSD-3-Clause
"""Files that a kill leaves old or new, never torn: written beside their place, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in `path`'s folder; when the block ends well, it becomes `path`.

    Args:
        path: the file to create or replace; its folder is made where it is missing.

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
