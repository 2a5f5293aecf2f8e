# SPDX-License-Identifier: BSD-3-Clause
"""One split of a data set: its name, where it lies, and how it is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastdet.data.annotations import Annotations
from fastdet.data.images import Exif

USUAL_NAMES = ("train", "val", "test")
OTHER_NAMES = {"valid": "val", "validation": "val"}


class Reader(Protocol):
    """Reads the annotations of one split."""

    def __call__(self, *, masks: bool, exif: Exif, files_anywhere: bool) -> Annotations:
        """Reads them.

        Args:
            masks: read the segmentations too; what has none is left out, with a warning.
            exif: see `read_image`; where the size of a picture is read from its header.
            files_anywhere: allow file names that lead out of the image folder.
        """
        ...


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        format: its name in `FORMATS`.
        path: the file or folder with the annotations, for messages.
        read: reads them.
        read_partly: as `read`, but leaves out the annotations of pictures that cannot be read, of
            which `read` makes an error; None: it is `read`.
    """

    format: str
    path: Path
    read: Reader
    read_partly: Reader | None = None


def usual_name(name: str) -> str:
    """The name that a split is asked for by: "val" for "valid" and "validation"."""
    return OTHER_NAMES.get(name, name)


def by_usual_name(splits: list[tuple[str, Split]]) -> dict[str, Split]:
    """The splits by their usual names, "train", "val" and "test" first.

    Raises:
        ValueError: two have the same.
    """
    found: dict[str, Split] = {}
    for name, split in splits:
        name = usual_name(name)
        if name in found and found[name].path == split.path:
            raise ValueError(f"{split.path}: two of its names both are the split '{name}'")
        if name in found:
            raise ValueError(
                f"{found[name].path} and {split.path}: both are the split '{name}'; rename or "
                "move one of them, or give the file in place of the folder"
            )
        found[name] = split
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> int:
    return USUAL_NAMES.index(name) if name in USUAL_NAMES else len(USUAL_NAMES)
