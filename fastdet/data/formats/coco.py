# SPDX-License-Identifier: BSD-3-Clause
"""The layouts of a folder with COCO files."""

from functools import partial
from pathlib import Path

from fastdet.data.coco_file import read_coco_file
from fastdet.data.formats.split import Split


def splits(folder: Path) -> dict[str, Split]:
    """The splits of a folder in one of two layouts.

    `{split}.json` beside `images/`, or COCO's own: `annotations/instances_{split}2017.json` beside
    `{split}2017/`.
    """
    found = {path.stem: _split(path, folder / "images") for path in sorted(folder.glob("*.json"))}
    for path in sorted((folder / "annotations").glob("instances_*2017.json")):
        year = path.stem.removeprefix("instances_")
        found.setdefault(year.removesuffix("2017"), _split(path, folder / year))
    return found


def _split(path: Path, images: Path) -> Split:
    return Split("coco", path, partial(read_coco_file, path, images=images))
