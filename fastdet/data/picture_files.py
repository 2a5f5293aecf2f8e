# SPDX-License-Identifier: BSD-3-Clause
"""Which files of a folder are pictures: by their names, at any depth."""

import os
from collections.abc import Callable
from pathlib import Path

# In the order in which one of several pictures with the same name is taken.
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".jp2", ".mpo", ".avif", ".gif", ".ppm", ".pgm"),
)


def pictures_below(folder: Path) -> list[Path]:
    """The paths of the picture files of a folder, sorted; see `files_below`."""
    return files_below(folder, is_picture)


def files_below(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The paths of the files of a folder whose names are wanted, sorted.

    Links are followed, and a folder that links lead to again is read once. Hidden files are left
    out, for example the "._" files of macOS.
    """
    found: list[str] = []
    waiting, seen = [folder], set()
    while waiting:
        directory = waiting.pop()
        status = directory.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif wanted(entry.name) and entry.is_file():
                    found.append(entry.path)
    return [Path(path) for path in sorted(found)]


def is_picture(name: str) -> bool:
    """Whether a file name is that of a picture."""
    return name.lower().endswith(SUFFIXES)
