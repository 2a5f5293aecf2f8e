# SPDX-License-Identifier: BSD-3-Clause
"""A file is replaced completely or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from fastdet.files import remove_leftovers, replacing


def test_replacing_makes_folder_and_file(tmp_path) -> None:
    with replacing(tmp_path / "a" / "b.txt") as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not (tmp_path / "a" / "b.txt").exists()
    assert [(f.name, f.read_text()) for f in (tmp_path / "a").iterdir()] == [("b.txt", "new")]


def test_an_error_without_a_place_gets_the_file(tmp_path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*b\.txt'"):  # noqa: SIM117
        with replacing(tmp_path / "b.txt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("b.txt", "old")]


def test_leftovers_of_killed_processes_are_removed(tmp_path) -> None:
    code = (
        "import os, sys; from fastdet.files import replacing\n"
        "with replacing(sys.argv[1]) as file: file.write_text('ha'); os.kill(os.getpid(), 9)"
    )
    for name in ("b.txt", "other-b.txt"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name])
    running = os.getppid()
    kept = [f".{running}-b.txt", ".x-b.txt", "b.txt", "1-b.txt"]
    removed = [f".{os.getpid()}-b.txt", f".{10**30}-b.txt"]  # an id is used again after a restart
    for name in kept + removed:
        (tmp_path / name).write_text("")
    assert len(list(tmp_path.iterdir())) == 8
    remove_leftovers(tmp_path / "b.txt")
    others = [file.name for file in tmp_path.iterdir() if file.name not in kept]
    assert len(others) == 1
    assert others[0].endswith("-other-b.txt")
    assert all((tmp_path / name).exists() for name in kept)
    remove_leftovers(tmp_path / "no folder" / "b.txt")
