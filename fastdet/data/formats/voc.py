# SPDX-License-Identifier: BSD-3-Clause
"""The layouts of Pascal VOC: one XML file a picture, with or without lists of the pictures.

All XML files of a data set are parsed when its first split is read, 40 us each: the classes and the
first pixel are those of all its splits together, so that no two splits disagree on them.
"""

import re
import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from fastdet.data.annotations import AnnotationNotes, Annotations
from fastdet.data.formats.collecting import (
    Object,
    Picture,
    collect,
    pictures_by_stem,
    refuse_outside,
    size_of,
)
from fastdet.data.formats.shapes import mask_of
from fastdet.data.formats.split import Split, by_usual_name
from fastdet.data.formats.voc_file import (
    WRITTEN_HERE,
    FirstPixel,
    VocFile,
    VocObject,
    first_pixel_of,
    read_voc_file,
    voc_box,
    voc_polygon,
)
from fastdet.data.formats.xml_file import root_tag
from fastdet.data.images import Exif
from fastdet.data.picture_files import SUFFIXES
from fastdet.data.text_lines import text_lines

_ANNOTATIONS = ("Annotations", "annotations")
_IMAGES = ("JPEGImages", "images", "Images")
_PEEKED = 20  # files of a folder that are looked into


def splits(folder: Path, first_pixel: FirstPixel | None = None) -> dict[str, Split]:
    """The splits of a folder with XML files of Pascal VOC; {} for any other.

    `Annotations/` beside `JPEGImages/` or `images/`, in the folder or as `VOC2012/` or
    `VOCdevkit/VOC2012/` in it, with a split for each list in `ImageSets/Main/`, without the lists
    of single classes; or XML files beside their pictures. Without lists a folder is the split
    "default", or its subfolders are splits.

    Args:
        folder: of the data set.
        first_pixel: what the pixels count from; None: see `first_pixel_of`.

    Raises:
        ValueError: more than one data set in the folder.
    """
    roots = [folder, *_subfolders(folder, "VOC*"), *_subfolders(folder / "VOCdevkit", "VOC*")]
    found = {root: parts for root in roots if (parts := _parts(root))}
    if len(found) > 1:
        names = ", ".join(str(root) for root in found)
        raise ValueError(f"{folder}: expected one data set of Pascal VOC, got {names}")
    root, parts = next(iter(found.items()), (folder, _parts_of_subfolders(folder)))
    data = _DataSet(root, parts, first_pixel)
    return by_usual_name(
        [(name, Split("voc", part.path, partial(data.read, name))) for name, part in parts.items()]
    )


class _Part(NamedTuple):
    """The files of one split."""

    annotations: Path  # the folder of the XML files
    images: Path
    list_file: Path | None  # None: every XML file is a picture's

    @property
    def path(self) -> Path:
        return self.list_file or self.annotations

    def names(self) -> list[str]:
        """Of the pictures, without suffix, with the folders that they lie in."""
        if self.list_file is not None:
            return _listed(self.list_file)
        pattern = "**/*.xml" if self.annotations.name in _ANNOTATIONS else "*.xml"
        files = (file for file in self.annotations.glob(pattern) if file.is_file())
        return sorted(_stem(file.relative_to(self.annotations)) for file in files)


@dataclass(frozen=True)
class _DataSet:
    """All splits of a data set; its XML files are read once."""

    root: Path
    parts: dict[str, _Part]
    stated_first_pixel: FirstPixel | None

    def read(self, split: str, *, masks: bool, exif: Exif, files_anywhere: bool) -> Annotations:
        """Reads a split, as `Reader` says."""
        part = self.parts[split]
        self._say_first_pixel()
        notes = AnnotationNotes(part.path)
        stored = pictures_by_stem(part.images)
        pictures = []
        for name in part.names():
            refuse_outside(part.path, name, files_anywhere)
            xml = part.annotations / f"{name}.xml"
            file = self._files.get(xml)
            file_name = _picture_name(name, file, stored)
            stated = (file.width, file.height) if file else (None, None)
            size = size_of(xml, *stated, part.images / file_name, exif)
            for kind, where in file.skipped if file else []:
                notes.add(kind, where)
            objects = [self._object(item, size, masks) for item in (file.objects if file else [])]
            pictures.append(Picture(file_name, size, objects))
        return collect(part.path, part.images, pictures, self._classes, masks, notes)

    @cached_property
    def _files(self) -> dict[Path, VocFile]:
        """All XML files of the splits, by path; a picture of a list may have none."""
        parts = self.parts.values()
        paths = {part.annotations / f"{name}.xml" for part in parts for name in part.names()}
        return {path: read_voc_file(path) for path in sorted(paths) if path.is_file()}

    @cached_property
    def _classes(self) -> list[str]:
        """In the order of the alphabet; of files that fastdet wrote, in that of labels.txt."""
        files = self._files.values()
        found = {item.name for file in files for item in file.objects}
        labels = self.root / "labels.txt"
        if labels.is_file() and {file.database for file in files} == {WRITTEN_HERE}:
            listed = _lines(labels)
            if found <= set(listed) and len(set(listed)) == len(listed):
                return listed
        return sorted(found)

    @cached_property
    def _first_pixel(self) -> tuple[FirstPixel, str]:
        if self.stated_first_pixel is not None:
            return self.stated_first_pixel, ""
        return first_pixel_of(list(self._files.values()))

    def _say_first_pixel(self) -> None:
        first_pixel, why = self._first_pixel
        if why:
            warnings.warn(
                f"{self.root}: pixels are taken to count from {first_pixel}: {why}. If that is "
                f"wrong: fastdet convert --voc-first-pixel {1 - first_pixel}",
                stacklevel=3,
            )

    def _object(self, item: VocObject, size: tuple[int, int], masks: bool) -> Object:
        first_pixel = self._first_pixel[0]
        polygons = [voc_polygon(points, first_pixel) for points in item.polygons]
        mask = mask_of(polygons, size) if masks else None
        return Object(item.name, voc_box(item, first_pixel), item.difficult, mask)


def _parts(root: Path) -> dict[str, _Part]:
    """The splits of one data set, by name."""
    if (annotations := _first_folder(root, _ANNOTATIONS)) and _is_voc(annotations, "**/*.xml"):
        images = _first_folder(root, _IMAGES) or root
        lists = _split_lists(root / "ImageSets" / "Main")
        if lists:
            return {file.stem: _Part(annotations, images, file) for file in lists}
        return {"default": _Part(annotations, images, None)}
    if _is_voc(root, "*.xml"):
        return {"default": _Part(root, root, None)}
    return {}


def _parts_of_subfolders(root: Path) -> dict[str, _Part]:
    """The splits where each is a folder of its own."""
    found = {folder.name: _parts(folder) for folder in _subfolders(root, "*")}
    return {name: parts["default"] for name, parts in found.items() if set(parts) == {"default"}}


def _split_lists(folder: Path) -> list[Path]:
    """The lists of pictures, without those that say for one class which pictures show it."""
    lists = sorted(folder.glob("*.txt"))
    stems = {file.stem for file in lists}
    return [file for file in lists if not (_suffix(file.stem) in stems and _has_flags(file))]


def _suffix(stem: str) -> str:
    """What follows the class in the name of its list: aeroplane_train -> train."""
    return stem.rpartition("_")[2] if "_" in stem else ""


def _has_flags(file: Path) -> bool:
    """Whether the lines end with -1, 0 or 1: absent, difficult, present."""
    lines = _lines(file)
    return all(re.fullmatch(r".*\S\s+(-1|0|1)", line) for line in lines)


def _lines(file: Path) -> list[str]:
    return [line for line in text_lines(file) if line]


def _listed(file: Path) -> list[str]:
    """The names in a list, each once; Datumaro puts quotes around those with spaces."""
    names = [re.sub(r'^"(.*)"$', r"\1", line) for line in _lines(file)]
    return list(dict.fromkeys(_stem(PurePosixPath(name)) for name in names))


def _picture_name(name: str, file: VocFile | None, stored: dict[str, list[str]]) -> str:
    """The picture of an XML file: the one with its name, else the one that it names.

    Tools that copy files leave old names in them, so the file's own name comes first.
    """
    stated = PurePosixPath(file.filename.replace("\\", "/")).name if file else ""
    same = stored.get(name, [])
    beside = (PurePosixPath(name).parent / stated).as_posix()
    if beside in same or (not same and beside in stored.get(_stem(PurePosixPath(beside)), [])):
        return beside
    if same:
        return same[0]
    return name + (PurePosixPath(stated).suffix or ".jpg")


def _is_voc(folder: Path, pattern: str) -> bool:
    """Whether one of a folder's first XML files is of Pascal VOC; others may be broken."""
    return any(root_tag(file) == "annotation" for file in islice(folder.glob(pattern), _PEEKED))


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _subfolders(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_dir())


def _stem(path: PurePath) -> str:
    """A file's name below the folder, without the suffix of a picture or of XML."""
    known = path.suffix.lower() in (*SUFFIXES, ".xml")
    return (path.with_suffix("") if known else path).as_posix()
