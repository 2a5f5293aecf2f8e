# SPDX-License-Identifier: BSD-3-Clause
"""SIGTERM and Ctrl-C end a command as an error does, and the exit status tells which it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(SystemExit):
    """A signal ended the work; str() says where.

    Uncaught, it ends the process with 128 + the signal's number, as shells do: 143 after SIGTERM,
    130 after Ctrl-C.
    """

    def __init__(self, number: signal.Signals, message: str = "stopped") -> None:
        super().__init__(message)
        self.code = 128 + number


@contextmanager
def stopping_at_sigterm() -> Iterator[None]:
    """Raises `Stopped` in the block at the first SIGTERM; later ones do nothing.

    Outside the main thread, where Python handles no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Stopped(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception as error:  # what the stop set off, such as the end of a loading process
        if stopped:
            raise Stopped(signal.SIGTERM) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
