# SPDX-License-Identifier: BSD-3-Clause
"""Which format a data set folder has, which splits it has, and how each is read.

A format is one file here with one function: it takes a folder and gives its splits, or none where
the folder has another format. The first format in `FORMATS` that finds splits is taken.
"""

from collections.abc import Callable
from pathlib import Path

from fastdet.data.formats import coco, cvat, labelme, voc
from fastdet.data.formats.split import Split

# By the name that messages and options have; in the order in which they are asked.
FORMATS: dict[str, Callable[[Path], dict[str, Split]]] = {
    "labelme": labelme.splits,  # first: its files are JSON, too
    "coco": coco.splits,
    "voc": voc.splits,
    "cvat": cvat.splits,
}


def find_splits(folder: Path) -> dict[str, Split]:
    """The splits of a data set, by name.

    Args:
        folder: of any format in `FORMATS`.

    Raises:
        FileNotFoundError: no such folder, or no format finds a split in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for find in FORMATS.values():
        if splits := find(folder):
            return splits
    raise FileNotFoundError(f"{folder}: no data set of a known format: {', '.join(FORMATS)}")
