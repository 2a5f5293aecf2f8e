# SPDX-License-Identifier: BSD-3-Clause
"""LabelMe: one JSON file a picture, beside it.

Rectangles, polygons, circles and masks are objects; shapes of one label and one group are one
object, as in labelme's own labelme2coco.py. Points and lines are left out, and counted. All files
of a data set are parsed when its first split is read, so that all splits have the same classes.
"""

import base64
import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from fastdet.data.annotations import AnnotationNotes, Annotations
from fastdet.data.formats.collecting import (
    Object,
    Picture,
    collect,
    refuse_outside,
    size_of,
)
from fastdet.data.formats.shapes import Box, Shape, coordinate, ellipse, extent, outline, pixels
from fastdet.data.formats.split import Split, by_usual_name
from fastdet.data.images import Exif
from fastdet.data.picture_files import SUFFIXES
from fastdet.data.segmentations import coco_mask

_SPLITS = ("train", "val", "valid", "validation", "test")
_HEAD = 65536  # bytes in which the keys of the format are looked for
_KEYS = re.compile(rb'"(shapes|imageData|imagePath)"\s*:')
_PEEKED = 20  # files of a folder that are looked into


def splits(folder: Path) -> dict[str, Split]:
    """The splits of a folder with files of LabelMe; {} for any other.

    The subfolders train, val, valid, validation and test, where one of them has such files; else
    the folder with all that is below it is the split "default".
    """
    subfolders = sorted(path for path in folder.glob("*") if path.is_dir())
    with_files = [path for path in (folder, *subfolders) if _has_files(path)]
    parts = {path.name: path for path in with_files if path != folder and path.name in _SPLITS}
    if with_files and not parts:
        parts = {"default": folder}
    data = _DataSet(folder, parts)
    return by_usual_name(
        [(name, Split("labelme", part, partial(data.read, name))) for name, part in parts.items()]
    )


@dataclass(frozen=True)
class _DataSet:
    """All splits of a data set; its JSON files are read once."""

    root: Path
    parts: dict[str, Path]

    def read(self, split: str, *, masks: bool, exif: Exif, files_anywhere: bool) -> Annotations:
        """Reads a split, as `Reader` says."""
        part = self.parts[split]
        notes = AnnotationNotes(part)
        files = self._files[split]
        paths = {file: _picture(self.root, file, files[file], files_anywhere) for file in files}
        images = part if all(_is_inside(path, part) for path in paths.values()) else self.root
        pictures = []
        for file, content in files.items():
            name = Path(os.path.relpath(paths[file], images)).as_posix()
            sides = content.get("imageWidth"), content.get("imageHeight")
            size = size_of(file, *sides, paths[file], exif)
            shapes = content["shapes"]
            pictures.append(Picture(name, size, list(_objects(file, shapes, size, masks, notes))))
        return collect(part, images, pictures, self._classes, masks, notes)

    @cached_property
    def _files(self) -> dict[str, dict[Path, dict[str, Any]]]:
        """The content of each file, by split and path."""
        return {
            name: {file: _read(file) for file in _json_files(part) if _is_labelme(file)}
            for name, part in self.parts.items()
        }

    @cached_property
    def _classes(self) -> list[str]:
        """The labels of all shapes that may be objects, in the order of the alphabet."""
        contents = [content for files in self._files.values() for content in files.values()]
        shapes = [shape for content in contents for shape in content["shapes"]]
        return sorted(
            {_label(shape) for shape in shapes if _label(shape) and _kind(shape) in _READERS}
        )


def _has_files(folder: Path) -> bool:
    return any(_is_labelme(file) for file in islice(folder.glob("*.json"), _PEEKED))


def _json_files(folder: Path) -> list[Path]:
    """Without those in hidden folders, where editors keep copies."""
    files = sorted(folder.rglob("*.json"))
    return [file for file in files if not any(map(_is_hidden, file.relative_to(folder).parts))]


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_labelme(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return _KEYS.search(opened.read(_HEAD)) is not None
    except OSError:
        return False


def _read(file: Path) -> dict[str, Any]:
    """The content of a file, without the picture that it may hold.

    Raises:
        ValueError: not JSON, not an object with a list of shapes and a path.
    """
    try:
        content = json.loads(file.read_bytes())
    except (RecursionError, ValueError) as error:  # broken JSON or broken UTF-8
        raise ValueError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError(f"{file}: expected an object with a list 'shapes'")
    path = content.get("imagePath")
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{file}: expected an imagePath, got {path!r}")
    content.pop("imageData", None)
    return content


def _picture(root: Path, file: Path, content: dict[str, Any], anywhere: bool) -> Path:
    """The absolute path of the picture that a file names.

    If there is none inside the data set, one beside the file with its name or with the file's own.

    Raises:
        ValueError: the picture lies outside the data set.
    """
    stated = PurePosixPath(content["imagePath"].replace("\\", "/"))
    file = file.absolute()
    path = Path(os.path.normpath(file.parent / stated))
    beside = [file.parent / stated.name, *(file.with_suffix(suffix) for suffix in SUFFIXES)]
    if not (_is_inside(path, root) and path.is_file()):
        path = next((other for other in beside if other.is_file()), path)
    if not _is_inside(path, root):
        refuse_outside(file, f"../{stated}", anywhere)
    return path


def _is_inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(os.path.normpath(folder.absolute()))


def _kind(shape: dict[str, Any]) -> str:
    """The type of a shape; old files have polygons alone, and do not say so."""
    return str(shape.get("shape_type") or "polygon")


def _label(shape: Any) -> str:
    """The class of a shape; "" where it is none."""
    label = shape.get("label") if isinstance(shape, dict) else None
    label = label.strip() if isinstance(label, str) else ""
    return "" if label == "__ignore__" else label


def _objects(
    file: Path, shapes: list[Any], size: tuple[int, int], masks: bool, notes: AnnotationNotes
) -> Iterator[Object]:
    """The objects of a picture, in the order of their first shapes."""
    groups: dict[tuple[str, object], list[Shape]] = {}
    for number, shape in enumerate(shapes, 1):
        where = f"{file.name}, object {number}"
        label = _label(shape)
        if not label:
            if not isinstance(shape, dict) or shape.get("label") != "__ignore__":
                notes.add("skipped: no label", where)
            continue
        kind = _kind(shape)
        if kind not in _READERS:
            notes.add(f"skipped: {kind[:40]} is no box", where)
            continue
        try:
            found = _READERS[kind](shape, size, masks)
        except (KeyError, OverflowError, TypeError, ValueError):
            notes.add(f"skipped: {kind} is broken", where)
            continue
        group = shape.get("group_id")
        key = (label, number if group is None else f"group {group}")
        groups.setdefault(key, []).append(found)
    for (label, _), members in groups.items():
        yield Object(label, _around([member.xywh for member in members]), False, _union(members))


def _around(boxes: list[Box]) -> Box:
    """The box around boxes; that of a single one is the same to the bit."""
    if len(boxes) == 1:
        return boxes[0]
    corners = [(x, y) for x, y, _, _ in boxes]
    return extent(corners + [(x + width, y + height) for x, y, width, height in boxes])


def _union(shapes: list[Shape]) -> Any:
    """The mask of all; None where one has none."""
    masks = [shape.mask for shape in shapes if shape.mask is not None]
    if len(masks) < len(shapes):
        return None
    return masks[0] if len(masks) == 1 else coco_mask.merge(masks)


def _points(shape: dict[str, Any], at_least: int) -> list[tuple[float, float]]:
    points = [(coordinate(x), coordinate(y)) for x, y in shape["points"]]
    if len(points) < at_least:
        raise ValueError(f"expected {at_least} points")
    return points


def _rectangle(shape: dict[str, Any], size: tuple[int, int], masks: bool) -> Shape:
    """Two corners in any order, or all four."""
    return Shape(extent(_points(shape, 2)))


def _polygon(shape: dict[str, Any], size: tuple[int, int], masks: bool) -> Shape:
    return outline(_points(shape, 3), size, masks)


def _circle(shape: dict[str, Any], size: tuple[int, int], masks: bool) -> Shape:
    """The centre and a point of the circle."""
    (cx, cy), (x, y) = _points(shape, 2)
    radius = math.hypot(x - cx, y - cy)
    return ellipse((cx, cy), (radius, radius), 0.0, size, masks)


def _mask(shape: dict[str, Any], size: tuple[int, int], masks: bool) -> Shape:
    """A picture of the pixels from the first of the two points on."""
    (left, top), *_ = _points(shape, 2)
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
        if picture.width > size[1] + 1 or picture.height > size[0] + 1:  # before it is decoded
            raise ValueError("expected a mask within the image")
        window = np.asarray(picture.convert("L")) > 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a mask: {error}") from error
    return pixels(window, int(left), int(top), size, masks)


_READERS = {
    "rectangle": _rectangle,
    "polygon": _polygon,
    "oriented_rectangle": _polygon,
    "rotation": _polygon,  # the oriented rectangle of X-AnyLabeling
    "circle": _circle,
    "mask": _mask,
}
