# SPDX-License-Identifier: BSD-3-Clause
"""Picture files to detect on, and the names of their drawings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from fastdet.data.picture_files import SUFFIXES, pictures_below


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        path: the file.
        name: its path relative to the given folder, or its file name.
    """

    path: Path
    name: PurePath


def picture_files(paths: Sequence[Path]) -> list[Picture]:
    """The picture files in `paths`, and those in folders in `paths`, at any depth.

    See `pictures_below`.

    Raises:
        FileNotFoundError: a path does not exist, or there is no picture.
    """
    pictures: list[Picture] = []
    for path in paths:
        if path.is_dir():
            pictures += [Picture(f, f.relative_to(path)) for f in sorted(pictures_below(path))]
        elif path.exists():
            pictures.append(Picture(path, PurePath(path.name)))
        else:
            raise FileNotFoundError(f"{path} does not exist")
    if not pictures:
        places = ", ".join(map(str, paths))
        raise FileNotFoundError(f"no picture ({' '.join(SUFFIXES)}) in {places}")
    return pictures


class Named(Protocol):
    """A picture or a video."""

    @property
    def path(self) -> Path:
        """Of the file."""
        ...

    @property
    def name(self) -> PurePath:
        """Relative to the given folder."""
        ...


def drawing_names(sources: Sequence[Named], suffix: str = ".jpg") -> list[PurePath]:
    """The file name of each picture's drawing, relative to the output folder: a.png -> a.jpg.

    If there are a.png and a.tif, their drawings are a.png.jpg and a.tif.jpg.

    Raises:
        ValueError: two pictures have the same name relative to the given folders, or one is given
            twice.
    """
    names = [source.name.with_suffix(suffix) for source in sources]
    uses = Counter(names)
    for i, source in enumerate(sources):
        if uses[names[i]] > 1:
            names[i] = source.name.with_name(f"{source.name.name}{suffix}")
    seen: dict[PurePath, Named] = {}
    for name, source in zip(names, sources, strict=True):
        other = seen.setdefault(name, source)
        if other is not source and other.path == source.path:
            raise ValueError(f"expected each picture once, got {source.path} twice")
        if other is not source:
            raise ValueError(
                f"{other.path} and {source.path} would both be drawn as {name}: give the folder "
                "that holds both"
            )
    return names
