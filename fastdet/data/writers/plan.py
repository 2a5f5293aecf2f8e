# SPDX-License-Identifier: BSD-3-Clause
"""Where each picture of a data set goes, before anything is written.

Invariant: two different pictures never get one name, nor two pictures one annotation file.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fastdet.data.annotations import Annotations

# The folder of the pictures, by format; {} stands for the split.
IMAGE_FOLDERS = {"coco": "images", "yolo": "images/{}", "voc": "JPEGImages"}


@dataclass(frozen=True)
class SplitPlan:
    """A split and the names of its pictures below the new image folder."""

    name: str
    annotations: Annotations
    image_folder: PurePosixPath  # below the new folder of the data set
    file_names: list[str]

    def sources(self) -> Iterator[tuple[Path, PurePosixPath]]:
        """Each picture as it is, and its place below the new folder of the data set."""
        images = self.annotations.images
        assert images is not None
        for old, new in zip(self.annotations.file_names, self.file_names, strict=True):
            yield images / old, self.image_folder / new

    def rows(self) -> list[np.ndarray]:
        """The annotations of each picture, in their order."""
        index = self.annotations.image_index
        order = np.argsort(index, kind="stable")
        ends = np.cumsum(np.bincount(index, minlength=len(self.file_names)))
        return np.split(order, ends[:-1]) if len(ends) else []


class Notes:
    """Counts what a format cannot hold."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """Notes `count` more of what was left out or changed."""
        self.counts[what] += count

    def sentences(self) -> list[str]:
        """One for each kind."""
        return [f"{what}: {count}" for what, count in self.counts.items() if count]


def plan_splits(splits: Mapping[str, Annotations], format: str) -> list[SplitPlan]:
    """The places of all pictures.

    A picture keeps its name below the image folder. Where two splits have different pictures of one
    name, or in VOC one picture with different objects, the split's name is put before all names.

    Raises:
        ValueError: no split, a split without an image folder, names that the format cannot tell
            apart or that lead out of the folder.
    """
    if not splits:
        raise ValueError("expected at least one split, got none")
    for name, split in splits.items():
        if not name or PurePosixPath(name).name != name:
            raise ValueError(f"expected the name of a split, got {name!r}")
        if split.images is None:
            raise ValueError(f"{split.path}: expected annotations with an image folder")
        _check_names(split, format)
    folders = {name: PurePosixPath(IMAGE_FOLDERS[format].format(name)) for name in splits}
    prefixed = format != "yolo" and _collide(splits, format)
    return [
        SplitPlan(
            name,
            split,
            folders[name],
            [f"{name}/{file}" if prefixed else file for file in split.file_names],
        )
        for name, split in splits.items()
    ]


def _check_names(split: Annotations, format: str) -> None:
    """Refuses names outside the image folder, and two for one annotation file."""
    seen: dict[str, str] = {}
    for name in split.file_names:
        if not _is_file_name(name):
            raise ValueError(f"{split.path}: expected a name that a file can have, got {name!r}")
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(
                f"{split.path}: the file name {name!r} leads out of the image folder, so the "
                "picture has no place in the new one"
            )
        if format != "coco" and _stem(name) in seen:
            raise ValueError(
                f"{split.path}: expected one annotation file a picture, but {seen[_stem(name)]!r} "
                f"and {name!r} would share theirs in the format {format}"
            )
        seen[_stem(name)] = name


def _is_file_name(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _stem(name: str) -> str:
    """What the annotation file of a picture is called by."""
    return PurePosixPath(name).with_suffix("").as_posix()


def _collide(splits: Mapping[str, Annotations], format: str) -> bool:
    """Whether two splits mean different pictures, or in VOC different objects, by one name."""
    seen: dict[str, object] = {}
    for split in splits.values():
        assert split.images is not None
        contents = _contents(split) if format == "voc" else [b""] * len(split.file_names)
        for file, content in zip(split.file_names, contents, strict=True):
            means = (split.images / file, content)
            if seen.setdefault(file if format == "coco" else _stem(file), means) != means:
                return True
    return False


def _contents(split: Annotations) -> list[bytes]:
    """What a VOC file would say of each picture, to be compared."""
    names = np.array(["", *split.names], object)
    said: list[list[object]] = [[tuple(size)] for size in split.image_sizes.tolist()]
    for row, index in enumerate(split.image_index.tolist()):
        box = tuple(split.boxes_xywh[row].tolist())
        said[index].append((names[split.labels[row]], box, bool(split.crowd[row])))
    return [repr(objects).encode() for objects in said]
