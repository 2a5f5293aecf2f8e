# SPDX-License-Identifier: BSD-3-Clause
"""A file is replaced completely or not at all."""

import pytest

from fastdet.files import replacing


def test_replacing_makes_folder_and_file(tmp_path) -> None:
    with replacing(tmp_path / "a" / "b.txt") as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not (tmp_path / "a" / "b.txt").exists()
    assert [(f.name, f.read_text()) for f in (tmp_path / "a").iterdir()] == [("b.txt", "new")]


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
