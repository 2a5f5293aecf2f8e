# SPDX-License-Identifier: BSD-3-Clause
"""Writes the folders that tests read: text files, and pictures of one colour."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image


def write_tree(
    folder: Path,
    texts: Mapping[str, str],
    pictures: Iterable[str] = (),
    size: tuple[int, int] = (40, 30),
) -> Path:
    """Writes text files by their paths, and pictures of a width and height; returns the folder."""
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in pictures:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(file)
    return folder
