# SPDX-License-Identifier: BSD-3-Clause
"""YOLO data sets: what describes them, their splits and the names of their classes.

Ultralytics' data.yaml, darknet's obj.data, a list of classes (classes.txt, obj.names) beside the
pictures, or folders alone.
"""

import os
import re
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from fastdet.data.annotations import Annotations
from fastdet.data.formats.split import USUAL_NAMES, Split, by_usual_name, usual_name
from fastdet.data.images import Exif
from fastdet.data.picture_files import SUFFIXES
from fastdet.data.text_lines import text_lines
from fastdet.data.yolo_labels import largest_class, read_yolo_labels
from fastdet.data.yolo_pictures import YoloDataSet, image_folder

_SPLIT_KEYS = ("train", "val", "valid", "validation", "test", "minival")
_CLASS_LISTS = ("classes.txt", "obj.names", "labels/classes.txt")
_NOTHING = (None, "", "null", "~")
_LARGEST_CLASS = 99_999  # where only the labels say how many there are
_MAX_BYTES = 1_000_000  # of a description
_CLASS_KEY = re.compile(rb"""^["']?(names|nc)["']?\s*:|^\s*\{""", re.MULTILINE)


def splits(path: Path) -> dict[str, Split]:
    """The splits of a YOLO folder, of a data.yaml or of an obj.data."""
    data = _of_file(path) if path.is_file() else _of_folder(path)
    if data is None:
        return {}
    # Who shares a data set often leaves out its test split.
    here = [
        name
        for name, sources in data.splits.items()
        if usual_name(name) in ("train", "val") or all(data.located(s)[0] for s in sources)
    ]
    return by_usual_name([(name, _split(data, name)) for name in here])


def _split(data: YoloDataSet, name: str) -> Split:
    read, read_partly = (partial(_read, data, name, partly) for partly in (False, True))
    return Split("yolo", data.source, read, read_partly)


def _read(
    data: YoloDataSet, split: str, partly: bool, *, masks: bool, exif: Exif, files_anywhere: bool
) -> Annotations:
    sources, pictures = data.sources(split), data.pictures(split, files_anywhere)
    names = data.names
    if names is None:  # the labels of all splits say how many classes there are
        every = chain.from_iterable(data.pictures(name, files_anywhere) for name in data.splits)
        largest = largest_class(every)
        if largest > _LARGEST_CLASS:
            raise ValueError(
                f"{data.source}: class {largest}, and no list of classes: expected 0 to "
                f"{_LARGEST_CLASS}"
            )
        names = {number: str(number) for number in range(largest + 1)}
    images = image_folder(sources, pictures)
    return read_yolo_labels(
        sources[0],
        images,
        sorted(picture.relative_to(images).as_posix() for picture in pictures),
        names,
        masks,
        exif=exif,
        key_points=data.key_points,
        partly=partly,
    )


def _of_file(path: Path) -> YoloDataSet | None:
    if path.suffix.lower() in (".yaml", ".yml"):
        content = _yaml(path)
        data = _of_yaml(path, content) if _describes_data(content) else None
        if data is None:
            raise ValueError(
                f"{path}: expected the keys of a YOLO data set: names or nc, and train or val; got "
                f"{', '.join(content) or 'none'}"
            )
        return data
    return _of_darknet(path) if path.suffix.lower() == ".data" else None


def _of_folder(folder: Path) -> YoloDataSet | None:
    found = _yaml_of(folder)
    if found is not None:
        return _of_yaml(*found)
    for path in sorted(folder.glob("*.data")):
        if path.is_file() and (data := _of_darknet(path)) is not None:
            return data
    files = _class_lists(folder)
    data = _of_layout(folder, files[0] if files else folder, flat=bool(files))
    if data is None or not files:
        return data
    names = _names_of_lines(files[0])
    for file in files[1:]:
        if _names_of_lines(file) != names:
            raise ValueError(f"{file}: expected the classes of {files[0]}, got others")
    return replace(data, names=names)


# ---- data.yaml -----------------------------------------------------------------------------------


def _yaml_of(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The YAML file of a folder that describes a data set.

    Raises:
        ValueError: there are several, and none is called data.yaml; a broken data.yaml.
    """
    for name in ("data.yaml", "data.yml"):
        if (folder / name).is_file() and _describes_data(content := _yaml(folder / name)):
            return folder / name, content
    found = []
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            with file.open("rb") as opened:
                if not _CLASS_KEY.search(opened.read(_MAX_BYTES)):
                    continue  # parsing YAML is slow
            content = _yaml(file)
        except (OSError, ValueError):
            continue  # it may belong to any tool
        if _describes_data(content) and set(_SPLIT_KEYS) & set(content):
            found.append((file, content))
    if len(found) > 1:
        raise ValueError(
            f"{folder}: expected one YAML file of a data set, got "
            f"{', '.join(file.name for file, _ in found)}; give one of them in place of the folder"
        )
    return found[0] if found else None


def _yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file; every scalar is text, so that a class `no` stays "no".

    Raises:
        ValueError: not a YAML file, or not one of keys and values.
    """
    import yaml

    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: expected a YAML file of at most {_MAX_BYTES} bytes")
    try:
        # The plainest loader: it makes no objects.
        content = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _describes_data(content: dict[str, Any]) -> bool:
    """Whether a YAML file is of a data set; that of a model has `nc` too."""
    return "names" in content or ("nc" in content and bool(set(_SPLIT_KEYS) & set(content)))


def _of_yaml(path: Path, content: dict[str, Any]) -> YoloDataSet | None:
    found = {}
    for key in _SPLIT_KEYS:
        value = content.get(key)
        if value in _NOTHING:
            continue
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(entry, str) and entry for entry in entries):
            raise ValueError(
                f"{path}: {key}: expected a path or a list of paths, got {_shown(value)}"
            )
        found[key] = entries
    data = (
        YoloDataSet(path, _roots(path, content.get("path")), found)
        if found
        else _of_layout(path.parent, path, flat=True)
    )
    names = _names_of_yaml(path, content)
    return data and replace(data, names=names, key_points=_key_points(path, content))


def _names_of_yaml(path: Path, content: dict[str, Any]) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if count not in _NOTHING and not _matches(r"\d{1,6}(\.0*)?", count):
        raise ValueError(f"{path}: nc: expected a number of classes, got {_shown(count)}")
    number = None if count in _NOTHING else int(float(count))
    if names in _NOTHING:
        return {i: str(i) for i in range(number or 0)}
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict):
        raise ValueError(f"{path}: names: expected a list, or names by number, got {_shown(names)}")
    for key, name in names.items():
        if not _matches(r"\d{1,6}", key) or not _matches(".+", name):
            raise ValueError(
                f"{path}: names: expected a name by number, got {key!r}: {_shown(name)}"
            )
    found = {int(key): name for key, name in names.items()}
    if number is not None and number not in (len(found), max(found, default=-1) + 1):
        raise ValueError(f"{path}: nc is {number}, but there are {len(found)} names")
    return found


def _key_points(path: Path, content: dict[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if shape in _NOTHING:
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(_matches(r"\d{1,6}", side) for side in shape)
    ):
        raise ValueError(f"{path}: kpt_shape: expected two numbers, got {_shown(shape)}")
    return int(shape[0]) * int(shape[1])


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None


def _shown(value: Any) -> str:
    """A value in a message. Lists are not written out: by aliases a small one may be endless."""
    return repr(value[:80]) if isinstance(value, str) else type(value).__name__


def _roots(path: Path, stated: Any) -> list[Path]:
    """The folders that relative paths of a data.yaml may start from.

    What its `path` says: absolute, relative to the file, to the working folder, or to `datasets` in
    that (Ultralytics). Then the file's own folder, for a data set that was moved.
    """
    own = _absolute(path).parent
    found = []
    if isinstance(stated, str) and stated not in _NOTHING:
        stated = stated.replace("\\", "/")
        found = [base / stated for base in (own, Path.cwd(), Path.cwd() / "datasets")]
    return list(dict.fromkeys([*(_absolute(root) for root in found if root.is_dir()), own]))


# ---- obj.data, lists of classes, folders alone ---------------------------------------------------


def _of_darknet(path: Path) -> YoloDataSet | None:
    """Of lines `key = value`, as in obj.data; None of another file."""
    if path.stat().st_size > _MAX_BYTES:
        return None
    text = path.read_bytes().decode("utf-8-sig", "replace")
    pairs = [line.partition("=") for line in text.splitlines()]
    content = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    found = {key: [content[key]] for key in _SPLIT_KEYS if key in content}
    if not found or not {"names", "classes"} & set(content):
        return None
    data = YoloDataSet(path, [_absolute(path).parent], found)
    if "names" not in content:
        return data
    file, tried = data.located(content["names"])
    if file is None:
        raise FileNotFoundError(f"{path}: names: no such file: {' or '.join(map(str, tried))}")
    return replace(data, names=_names_of_lines(file))


def _of_layout(folder: Path, source: Path, flat: bool) -> YoloDataSet | None:
    """Of folders that only their names describe; None where there are no labels.

    `images/{split}/` and `labels/{split}/`, `{split}/images/` and `{split}/labels/`, or `images/`
    and `labels/`. With `flat`, the pictures and their labels may also lie in `data/` or in the
    folder itself.
    """
    folder = _absolute(folder)
    found = {d.name: d for d in sorted(folder.glob("images/*/")) if _is_split(d)}
    if not found:
        found = {d.name: d / "images" for d in sorted(folder.glob("*/")) if _is_split(d)}
        found = {name: images for name, images in found.items() if images.is_dir()}
    if not found:
        places = [folder / "images", *([folder / "data", folder] if flat else [])]
        place = next((place for place in places if place.is_dir()), None)
        found = {} if place is None else {"default": place}
    if not any(map(_has_labels, found.values())):
        return None
    return YoloDataSet(source, [folder], {name: [str(d)] for name, d in found.items()})


def _is_split(folder: Path) -> bool:
    return usual_name(folder.name) in USUAL_NAMES


def _has_labels(images: Path) -> bool:
    """Whether a folder of pictures has label files: beside them, or in its folder of labels."""
    before, name, after = str(images).rpartition(f"{os.sep}images")
    labels = Path(f"{before}{os.sep}labels{after}") if name else images
    if labels != images and next(labels.rglob("*.txt"), None) is not None:
        return True
    texts = images.glob("*.txt")
    return any(text.with_suffix(suffix).is_file() for text in texts for suffix in SUFFIXES)


def _class_lists(folder: Path) -> list[Path]:
    """The list of classes in a folder, else those in the folders of its splits."""
    folders = [folder, *(d for d in sorted(folder.glob("*/")) if _is_split(d))]
    lists = (next((d / n for n in _CLASS_LISTS if (d / n).is_file()), None) for d in folders)
    found = [file for file in lists if file is not None]
    return found[:1] if found and found[0].parent in (folder, folder / "labels") else found


def _names_of_lines(path: Path) -> dict[int, str]:
    names = dict(enumerate(text_lines(path)))
    if not names or not all(names.values()):
        raise ValueError(f"{path}: expected the name of a class in each line, got a blank one")
    return names


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))
