# SPDX-License-Identifier: BSD-3-Clause
"""Which pictures a YOLO data set has: the folders and lists that its description names.

Descriptions are moved, shared and written on other machines, so a path in one is tried in the
places where tools mean it. A folder or list that a description names is followed wherever it leads;
the pictures of a list may lead out of the data set only where `files_anywhere` allows it.
"""

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastdet.data.picture_files import is_picture, pictures_below
from fastdet.data.text_lines import text_lines


@dataclass(frozen=True)
class YoloDataSet:
    """What a file, or the folders themselves, say about a data set.

    Attributes:
        source: what says it, for messages.
        roots: the folders that relative paths start from, in the order in which they are tried.
        splits: the folders and lists of pictures of each split.
        names: of the classes by their number; None: nobody says.
        key_points: how many numbers of key points stand behind a box.
    """

    source: Path
    roots: list[Path]
    splits: dict[str, list[str]] = field(default_factory=dict)
    names: dict[int, str] | None = None
    key_points: int = 0

    def sources(self, split: str) -> list[Path]:
        """The folders and lists of a split.

        Raises:
            FileNotFoundError: one does not exist.
        """
        found = []
        for entry in self.splits[split]:
            place, tried = self.located(entry)
            if place is None:
                places = " or ".join(map(str, tried))
                raise FileNotFoundError(f"{self.source}: {split}: no such folder or list: {places}")
            found.append(place)
        return found

    def pictures(self, split: str, files_anywhere: bool = False) -> list[Path]:
        """The absolute paths of the pictures of a split, each once.

        Raises:
            FileNotFoundError: a folder or list does not exist, or there is no picture.
            ValueError: a picture of a list leads out of the data set.
        """
        sources, found = self.sources(split), []
        for source in sources:
            if source.is_dir():
                found += pictures_below(source)
            else:
                found += self._listed(source, files_anywhere)
        if not found:
            places = ", ".join(map(str, sources))
            raise FileNotFoundError(f"{self.source}: {split}: no picture in {places}")
        once = list(dict.fromkeys(found))
        if len(once) < len(found):
            warnings.warn(
                f"{self.source}: {split}: {len(found) - len(once)} pictures are named again, and "
                "are read once",
                stacklevel=2,
            )
        return once

    def located(self, entry: str) -> tuple[Path | None, list[Path]]:
        """Where a path of the description leads, None for nowhere; and all that was tried."""
        entry = entry.replace("\\", "/")
        names = [entry]
        inside = re.sub(r"^(\.\./)+", "", entry)
        if inside != entry:  # Roboflow writes ../train/images for what lies beside the file
            names.append(inside)
        elif entry.startswith("data/"):  # darknet's working folder
            names.append(entry.removeprefix("data/"))
        else:
            # Not a folder's usual name alone: it does not say of which split.
            names += [end for end in _ends(entry) if end not in ("images", "data")]
        tried = [_normal(root / name) for name in names for root in self.roots]
        tried = list(dict.fromkeys(tried))
        found = [path for path in tried if path.exists()]
        if inside != entry and len(found) > 1:
            warnings.warn(
                f"{self.source}: {entry} is taken for {found[0]}; there is {found[1]} too",
                stacklevel=3,
            )
        return found[0] if found else None, tried

    def _listed(self, file: Path, files_anywhere: bool) -> Iterator[Path]:
        """The pictures that a text file lists, line by line, less those that do not exist."""
        allowed = [file.parent, *self.roots]
        missing, some = [], False
        for number, line in enumerate(text_lines(file), 1):
            if not line:
                continue
            place = _listed_picture(line.replace("\\", "/"), allowed)
            if place is None:
                missing.append(f"line {number}: {line}")
                continue
            if not files_anywhere and not any(place.is_relative_to(base) for base in allowed):
                raise ValueError(
                    f"{file}, line {number}: {line} leads out of the data set; files_anywhere=True "
                    "allows it"
                )
            some = True
            yield place
        if missing:
            message = f"{file}: {len(missing)} pictures do not exist (first: {missing[0]})"
            if not some:
                raise FileNotFoundError(message)
            warnings.warn(message, stacklevel=3)


def image_folder(sources: list[Path], pictures: list[Path]) -> Path:
    """The split's folder, or the deepest one that has all of its pictures."""
    folders = sources if all(s.is_dir() for s in sources) else [p.parent for p in pictures]
    return Path(os.path.commonpath(list(dict.fromkeys(folders))))


def _listed_picture(name: str, folders: list[Path]) -> Path | None:
    """A picture of a list: below the list's folder, the data set's or the working one."""
    if not is_picture(name):
        return None
    # Of several folders that have an end of an absolute path, the last part alone decides nothing.
    ends = [end for end in _ends(name) if "/" in end]
    names = [name, name.removeprefix("data/"), *ends]
    tried = [folder / part for part in dict.fromkeys(names) for folder in folders]
    return next((_normal(p) for p in [*tried, Path.cwd() / name] if p.is_file()), None)


def _ends(path: str) -> list[str]:
    """The ends of an absolute path, longest first: where it lies in a data set that was moved."""
    match = re.match(r"(?:[A-Za-z]:)?/+", path)
    if match is None:
        return []
    parts = [part for part in path[match.end() :].split("/") if part]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))
