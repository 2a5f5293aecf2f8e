# SPDX-License-Identifier: BSD-3-Clause
"""One training a folder: who lives is respected, who was killed is not."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastdet.training.run_lock import run_lock

# Takes the lock, forks a process as a DataLoader does, and waits.
HOLDER = """
import os, sys, time
from pathlib import Path
from fastdet.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)  # by the child, when it has let go of the lock
    time.sleep(600)
"""


def test_a_running_training_is_named_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            expected = f"process {holder.pid} on {socket.gethostname()} trains there$"
            with pytest.raises(BlockingIOError, match=expected), run_lock(tmp_path / "run"):
                pass
            assert (tmp_path / "run" / "training.lock").exists()
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # still there, and no obstacle
            with run_lock(tmp_path / "run"):
                text = (tmp_path / "run" / "training.lock").read_text()
                assert text == f"{os.getpid()} {socket.gethostname()}\n"
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)
    assert list((tmp_path / "run").iterdir()) == []


def test_the_lock_of_another_host_is_respected(tmp_path: Path) -> None:
    lock = tmp_path / "training.lock"
    lock.write_text("17 elsewhere\n")
    expected = f"process 17 on elsewhere trains there. If it was killed, delete {lock}"
    with pytest.raises(BlockingIOError, match=expected), run_lock(tmp_path):
        pass
    assert lock.read_text() == "17 elsewhere\n"


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), run_lock(tmp_path):
        raise KeyboardInterrupt
    with run_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    for name in ("given", "new", "used"):
        with run_lock(tmp_path / name):
            if name == "used":
                (tmp_path / name / "log").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "used"]


def test_a_lock_file_that_was_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other training ended between the opening of the file and the lock."""
    honest = fcntl.flock
    calls = []

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / "training.lock").unlink()
        honest(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with run_lock(tmp_path):
        assert (tmp_path / "training.lock").read_text().startswith(f"{os.getpid()} ")
    assert len(calls) == 2
