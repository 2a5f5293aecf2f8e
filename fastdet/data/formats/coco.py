# SPDX-License-Identifier: BSD-3-Clause
"""The layouts of a folder with COCO files.

A COCO file is a JSON object with the lists `images` and `annotations`; it is recognised without
parsing it. Where its pictures are is not what a layout says, but where the first of them are found.
"""

import json
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from fastdet.data.annotations import Annotations
from fastdet.data.coco_file import leads_out, read_coco_file
from fastdet.data.formats.split import USUAL_NAMES, Split, by_usual_name, usual_name
from fastdet.data.images import Exif

ROBOFLOW = "_annotations.coco.json"
# A folder of LabelMe has thousands of JSON files, each with a picture in it: only the beginning of
# a file is read, unless that is COCO's.
_BEGINNING = 16_384  # bytes
_LIST = re.compile(rb'"(?:images|annotations|categories|licenses)"\s*:\s*\[|"info"\s*:\s*\{')
_IMAGES, _ANNOTATIONS = (re.compile(rb'"%b"\s*:\s*\[' % key) for key in (b"images", b"annotations"))
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_LOOKED_UP = 20  # pictures


def splits(path: Path) -> dict[str, Split]:
    """The splits of a folder with COCO files, or the one of a file.

    - `{split}.json`; of other names, those files that are COCO files.
    - `annotations/instances_{split}.json`, with or without a year behind the split; where there is
      none, `annotations/{split}.json`.
    - `{split}/_annotations.coco.json`, and any COCO file in a folder `train`, `val` or `test`.
    """
    if path.suffix.lower() == ".json" and path.is_file():
        return by_usual_name([(_name(path), _split(path))])
    files = [
        *((_name(file), file) for file in _coco_files(path)),
        *((_name(file), file) for file in _in_annotations(path / "annotations")),
        *(
            (folder.name, file)
            for folder in sorted(path.glob("*/"))
            for file in _in_folder_of_split(folder)
        ),
    ]
    return by_usual_name([(name, _split(file)) for name, file in files])


def is_coco_file(path: Path) -> bool:
    """Whether a file is a JSON object with the lists `images` and `annotations`."""
    try:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
        if not beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return False
        if not _LIST.search(beginning):
            return False
        with _mapped(path) as content:
            return bool(_IMAGES.search(content) and _ANNOTATIONS.search(content))
    except OSError:
        return False


def _coco_files(folder: Path) -> list[Path]:
    """The COCO files of a folder.

    A file with the name of a split counts, whatever is in it: reading it says what is wrong.
    """
    return [
        file
        for file in sorted(folder.glob("*.json"))
        if file.is_file() and (usual_name(file.stem) in USUAL_NAMES or is_coco_file(file))
    ]


def _in_annotations(folder: Path) -> list[Path]:
    instances = [file for file in sorted(folder.glob("instances_*.json")) if file.is_file()]
    others = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
    return instances or [f for f in _coco_files(folder) if not f.name.startswith(others)]


def _in_folder_of_split(folder: Path) -> list[Path]:
    if (folder / ROBOFLOW).is_file():
        return [folder / ROBOFLOW]
    return _coco_files(folder) if usual_name(folder.name) in USUAL_NAMES else []


def _name(path: Path) -> str:
    """The split of a file: "train" for instances_train2017.json."""
    folder = path.parent.name
    if path.name == ROBOFLOW:
        return folder if usual_name(folder) in USUAL_NAMES else "default"
    return re.sub(r"^instances_(.+?)(?:_?\d{4})?$", r"\1", path.stem)


def _split(path: Path) -> Split:
    return Split("coco", path, partial(_read, path))


def _read(path: Path, *, masks: bool, exif: Exif, files_anywhere: bool) -> Annotations:
    images = _image_folder(path, _first_file_names(path), files_anywhere)
    return read_coco_file(
        path,
        masks,
        images=images,
        exif=exif,
        files_anywhere=files_anywhere,
        find=_FindInside(images),
    )


def _image_folder(path: Path, names: list[str], files_anywhere: bool) -> Path:
    """The folder where most of the pictures are, of those where they may be.

    Raises:
        FileNotFoundError: they are in none of these. Annotations whose image folder is missing too
            may still be read.
    """
    inside = [name for name in names if files_anywhere or not leads_out(name)]
    wanted = inside + [_last_part(name) for name in names if name not in inside]
    candidates = _image_folders(path)
    # labelme2coco's file names begin with a folder that lies beside that of the file.
    if path.name != ROBOFLOW and all("/" in name for name in wanted):
        candidates.append(path.parent.parent)
    counts = [sum((folder / name).is_file() for name in wanted) for folder in candidates]
    if any(counts):
        return candidates[counts.index(max(counts))]
    own = (path.parent, path.parent.parent)
    if inside and any(folder.is_dir() and folder not in own for folder in candidates):
        raise FileNotFoundError(
            f"{path}: no such image file: {inside[0]}, nor any other of the first {len(names)}, in "
            + ", ".join(map(str, candidates))
        )
    return candidates[0]


def _image_folders(path: Path) -> list[Path]:
    """Where the pictures of a file may be, the folder that its layout states first."""
    folder, split = path.parent, _name(path)
    stem = path.stem.removeprefix("instances_")  # with the year
    if path.name == ROBOFLOW:
        return [folder, folder / "images"]
    if folder.name == "annotations":
        root = folder.parent
        found = [root / stem, root / "images" / stem, root / "images" / split, root / split]
        found += [root / "images", root / "data", root, folder]
    else:
        found = [folder / "images", folder / "images" / split, folder / split, folder / "data"]
        found += [folder]
    return list(dict.fromkeys(found))


class _FindInside:
    """Finds a picture in the image folder whose file name leads out of it, by its last part.

    Label Studio writes paths of its server. The last part must name one picture alone.
    """

    def __init__(self, images: Path) -> None:
        self.images = images
        self.found: dict[str, str] = {}

    def __call__(self, name: str) -> str | None:
        last = _last_part(name)
        if self.found.setdefault(last, name) != name or not (self.images / last).is_file():
            return None
        return last


def _last_part(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _first_file_names(path: Path) -> list[str]:
    """The file names of the first images of a COCO file, without parsing it."""
    with _mapped(path) as content:
        images = _IMAGES.search(content)
        if images is None:
            return []
        found = islice(_FILE_NAME.finditer(content, images.end()), _LOOKED_UP)
        texts = [match[1] for match in found]
    try:
        return [name for name in map(json.loads, texts) if name]
    except ValueError:
        return []  # broken: the reader says where


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The content of a file, of which only what is looked at is read."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content
