# SPDX-License-Identifier: BSD-3-Clause
"""Outputs: files are replaced as a whole, and what exists is not overwritten."""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts `path` into an error of the system that names no file, such as "No space left"."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


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
        with naming(target):
            yield temporary
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises FileExistsError if `path` exists, unless the user asked to overwrite it."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give --overwrite, or another --out")


def refuse_content(out: Path) -> None:
    """Raises FileExistsError if `out` is anything but a new or an empty folder."""
    exists = out.exists() or out.is_symlink()
    if exists and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: give another one")


def refuse_inside(out: Path, folder: Path) -> None:
    """Raises ValueError if `out` is a folder or lies in it: a data set must not find its copy."""
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"expected a new folder outside the data set {folder}, got {out}")


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes what `replacing(path)` left beside `path` in processes that were killed.

    The temporary file of another process of this user that is still there stays. Call it while
    this process has no `replacing(path)` of its own.
    """
    target = Path(path)
    for file in target.parent.glob(f".*-{glob.escape(target.name)}"):
        name = re.fullmatch(rf"\.(\d+)-{re.escape(target.name)}", file.name)
        if name and (int(name[1]) == os.getpid() or not _is_running(int(name[1]))):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether a process of this user has that id."""
    try:
        os.kill(process, 0)
    except (OSError, OverflowError):
        return False
    return True
