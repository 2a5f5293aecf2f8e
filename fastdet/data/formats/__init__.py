# SPDX-License-Identifier: BSD-3-Clause
"""Which format a data set has, which splits it has, and how each is read.

A format is one file here with one function: it takes the path of a folder, or of the one file that
describes a data set, and gives its splits, or none where the path has another format. The first
format in `FORMATS` that finds splits is taken.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from fastdet.data.formats import coco, cvat, labelme, voc, yolo
from fastdet.data.formats.split import Split

# By the name that messages and options have; in the order in which they are asked.
FORMATS: dict[str, Callable[[Path], dict[str, Split]]] = {
    "coco": coco.splits,
    "yolo": yolo.splits,
    "voc": voc.splits,
    "cvat": cvat.splits,
    "labelme": labelme.splits,
}


def find_splits(path: Path, format: str | None = None) -> dict[str, Split]:
    """The splits of a data set, by name; "valid" and "validation" are called "val".

    Args:
        path: a folder of any format in `FORMATS`, or a file that describes one: a COCO file, a
            data.yaml.
        format: a name in `FORMATS`. None: the first that finds a split; where another one finds
            splits too, a warning names it.

    Raises:
        FileNotFoundError: no such path, or no format finds a split in it.
        ValueError: no such format; two files are the same split.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or file")
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format: expected {' or '.join(FORMATS)}, got {format}")
        if splits := FORMATS[format](path):
            return splits
        raise FileNotFoundError(f"{path}: no data set in the format {format}")
    formats = iter(FORMATS.items())
    for name, find in formats:
        if splits := find(path):
            if others := [other for other, find in formats if _finds(find, path)]:
                warnings.warn(
                    f"{path}: read as {name}; it is also a data set in the format "
                    f"{' and '.join(others)}, which its own file in place of the folder, or "
                    "format= in Python, chooses",
                    stacklevel=2,
                )
            return splits
    raise FileNotFoundError(f"{path}: no data set of a known format: {', '.join(FORMATS)}")


def _finds(find: Callable[[Path], dict[str, Split]], path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(find(path))
    except (OSError, ValueError):
        return False
