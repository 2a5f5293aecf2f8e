# SPDX-License-Identifier: BSD-3-Clause
"""CVAT's XML: "CVAT for images 1.1", one file for all pictures.

Boxes, polygons, masks and ellipses are objects; the box of a shape is its extent. Lines, points,
skeletons, cuboids and tags are left out, and counted. Cost: 10 us an object.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element
from xml.sax.saxutils import unescape

import numpy as np

from fastdet.data.annotations import AnnotationNotes, Annotations
from fastdet.data.formats.collecting import Object, Picture, collect, refuse_outside, size_of
from fastdet.data.formats.shapes import Shape, coordinate, ellipse, outline, pixels, turned_box
from fastdet.data.formats.split import Split, by_usual_name
from fastdet.data.formats.xml_file import elements_of, read_bytes, root_tag
from fastdet.data.images import Exif

# CVAT proposes them with capitals.
_USUAL = ("train", "val", "valid", "validation", "test", "default")
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_LARGEST_MASK = 1 << 28  # pixels


def splits(path: Path) -> dict[str, Split]:
    """The splits of a file of CVAT, or of the files in a folder; {} for anything else.

    A split is a subset: the attribute `subset` of the images, else the file's name;
    `annotations.xml` alone is the split "default". Pictures lie in `images/{subset}/`, `images/`,
    `{subset}/` or beside the file.

    Raises:
        ValueError: two files have the same subset.
    """
    files = sorted(path.glob("*.xml")) if path.is_dir() else [path]
    found = [
        (_split_name(subset, file), Split("cvat", file, partial(_read, file, subset)))
        for file in files
        if file.suffix.lower() == ".xml" and root_tag(file) == "annotations"
        for subset in _subsets(file)
    ]
    return by_usual_name(found)


def _subsets(file: Path) -> list[str]:
    """The subsets of a file, found without parsing it; "" where images have none."""
    tags = re.findall(rb"<image\s[^>]*>", read_bytes(file))
    named = (re.search(rb"\ssubset=(?:\"([^\"]*)\"|'([^']*)')", tag) for tag in tags)
    texts = {(match[1] or match[2] or b"") if match else b"" for match in named}
    entities = {"&quot;": '"', "&apos;": "'"}
    return sorted(unescape(text.decode("utf-8", "replace"), entities) for text in texts or {b""})


def _split_name(subset: str, file: Path) -> str:
    name = subset or ("default" if file.stem == "annotations" else file.stem)
    return name.lower() if name.lower() in _USUAL else name


def _read(file: Path, subset: str, *, masks: bool, exif: Exif, files_anywhere: bool) -> Annotations:
    """Reads a subset, as `Reader` says.

    Raises:
        ValueError: not XML, of a video, an image without a name.
    """
    notes = AnnotationNotes(file)
    labels: list[str] = []
    images = None
    pictures = []
    for element in _meta_and_images(file):
        if element.tag == "meta":
            labels = _labels(element)
            continue
        if element.get("subset", "") != subset:
            continue
        name = element.get("name", "")
        if not name:
            raise ValueError(f"{file}: image id {element.get('id')!r} has no name")
        refuse_outside(file, name, files_anywhere)
        images = images or _image_folder(file, subset, name)
        size = size_of(file, element.get("width"), element.get("height"), images / name, exif)
        reader = _Shapes(name, size, labels, masks, notes)
        pictures.append(Picture(name, size, list(reader.objects(element))))
    classes = labels or sorted({item.name for p in pictures for item in p.objects})
    return collect(file, images or file.parent, pictures, classes, masks, notes)


def _meta_and_images(file: Path) -> Iterator[Element]:
    """The elements of these names in their order, one at a time."""
    root = None
    for event, element in elements_of(file):
        root = element if root is None else root
        if event == "start" and element.tag == "track":
            raise ValueError(
                f"{file}: expected CVAT for images 1.1, got the tracks of a video: export the task "
                "as 'CVAT for images 1.1'"
            )
        if event == "end" and element.tag in ("meta", "image"):
            yield element
            root.clear()


def _labels(meta: Element) -> list[str]:
    """The names of the labels in their order, without the points of skeletons."""
    names = [
        (label.findtext("name") or "").strip()
        for label in meta.iter("label")
        if label.find("parent") is None
    ]
    # A file of a project has the same list for each of its tasks.
    return list(dict.fromkeys(name for name in names if name))


def _image_folder(file: Path, subset: str, name: str) -> Path:
    """The first folder that has the first picture; CVAT's own where none has it."""
    top = file.parent
    folders = [top / "images" / subset, top / "images", top / subset, top]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    return next(folder for folder in folders if folder.is_dir())


@dataclass(frozen=True)
class _Shapes:
    """Reads the shapes of one image."""

    file_name: str
    size: tuple[int, int]
    labels: list[str]
    masks: bool
    notes: AnnotationNotes

    def objects(self, image: Element) -> Iterator[Object]:
        """The shapes that are objects; counts the others."""
        readers = {
            "box": self._box,
            "polygon": self._polygon,
            "mask": self._mask,
            "ellipse": self._ellipse,
        }
        for number, element in enumerate(image, 1):
            where = f"{self.file_name}, object {number}"
            label = element.get("label", "").strip()
            if element.get("outside") == "1" or element.tag in ("tag", "attribute"):
                continue
            if element.tag not in readers:
                self.notes.add(f"skipped: {element.tag[:40]} is no box", where)
            elif not label or (self.labels and label not in self.labels):
                self.notes.add("skipped: its label is not in the file's list", where)
            else:
                try:
                    shape = readers[element.tag](element)
                except (KeyError, OverflowError, ValueError):
                    self.notes.add(f"skipped: {element.tag} is broken", where)
                    continue
                if element.tag == "box" and _rotation(element):
                    self.notes.add("kept with the upright box around a turned one", where)
                yield Object(label, shape.xywh, False, shape.mask)

    def _box(self, element: Element) -> Shape:
        x1, y1, x2, y2 = (coordinate(element.attrib[name]) for name in _CORNERS)
        if angle := _rotation(element):
            return Shape(turned_box(x1, y1, x2, y2, angle))
        return Shape((x1, y1, x2 - x1, y2 - y1))

    def _polygon(self, element: Element) -> Shape:
        pairs = [pair.split(",") for pair in element.attrib["points"].split(";")]
        points = [(coordinate(x), coordinate(y)) for x, y in pairs]
        if len(points) < 3:
            raise ValueError("expected three points")
        return outline(points, self.size, self.masks)

    def _ellipse(self, element: Element) -> Shape:
        cx, cy, rx, ry = (coordinate(element.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
        return ellipse((cx, cy), (rx, ry), _rotation(element), self.size, self.masks)

    def _mask(self, element: Element) -> Shape:
        left, top, width, height = (
            int(element.attrib[name]) for name in ("left", "top", "width", "height")
        )
        counts = np.array([int(count) for count in element.attrib["rle"].split(",")], np.int64)
        in_range = counts.min() >= 0 and counts.max() <= _LARGEST_MASK
        if not in_range or not counts.sum() == width * height <= _LARGEST_MASK:
            raise ValueError("expected counts that fill the window")
        is_inside = np.arange(len(counts)) % 2 == 1  # the first counts zeros
        window = np.repeat(is_inside, counts).reshape(height, width)  # row by row
        return pixels(window, left, top, self.size, self.masks)


def _rotation(element: Element) -> float:
    """Degrees, clockwise."""
    return coordinate(element.get("rotation") or "0")
