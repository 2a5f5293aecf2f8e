# SPDX-License-Identifier: BSD-3-Clause
"""One training at a time in a folder.

The file `training.lock` names the process that trains there. The kernel's lock on it says whether
that process lives: it goes when the process ends, however it ends, and it is seen across containers
and on most network file systems, where a process id says nothing.
"""

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_held: set[int] = set()  # file descriptors


def _close_in_child() -> None:
    """A loading process that outlives its killed training must not keep the lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`, which is created if it is missing, and removed if it stays empty.

    The lock that a killed training left is taken over if that ran on this host.

    Raises:
        BlockingIOError: another training has it; the message names its process id and host.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "training.lock"
    descriptor = _lock(path)
    _held.add(descriptor)
    try:
        _refuse_other_host(path)
        path.write_text(f"{os.getpid()} {socket.gethostname()}\n")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # not empty
                    folder.rmdir()
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Opens the file and locks it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _in_use(path) from None
        except OSError as error:  # a file system without locks
            warnings.warn(f"{path}: a second training is not noticed ({error})", stacklevel=4)
            return descriptor
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # the training that had the lock removed the file after it was opened


def _refuse_other_host(path: Path) -> None:
    """Not every network file system shows one host the locks of another."""
    _, host = _holder(path)
    if host not in ("", socket.gethostname()):
        raise BlockingIOError(f"{_in_use(path)}. If it was killed, delete {path}")


def _in_use(path: Path) -> BlockingIOError:
    process, host = _holder(path)
    return BlockingIOError(
        f"{path.parent}: expected a folder without a running training; process "
        f"{process or 'unknown'} on {host or 'this host'} trains there"
    )


def _holder(path: Path) -> tuple[str, str]:
    """Process id and host in the file; empty until the training that made it has written them."""
    try:
        process, _, host = path.read_text(errors="replace").strip().partition(" ")
    except FileNotFoundError:
        return "", ""
    return process, host
