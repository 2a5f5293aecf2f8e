# SPDX-License-Identifier: BSD-3-Clause
"""Reading and checking a COCO annotation file.

The file is parsed once, 3 us an annotation. Labels are 1..C in the ascending order of the file's
category ids, so two splits with the same categories agree on them. Masks, if requested, are kept as
run lengths. Defects of a file:

- no JSON, a missing key, an id that is no integer or occurs twice, an image without a size, a file
  name that leads out of the image folder: ValueError, naming file and id;
- an annotation of an unknown image or category, with an unusable box or segmentation, or an iscrowd
  that is neither 0 nor 1: left out, with one warning per kind that counts them and names the first;
- an annotation whose area is no number, or with a bad polygon beside good ones: kept without that,
  with the same warning.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fastdet.data.annotations import Annotations
from fastdet.data.coco_annotations import AnnotationReader
from fastdet.data.coco_json import is_number, read_json, read_json_in_slices, records
from fastdet.data.images import Exif, image_size

__all__ = ["file_name", "read_coco_file", "read_json", "records"]

LONGEST_SIDE = 1_000_000  # pixels


def read_coco_file(
    path: str | Path,
    masks: bool = False,
    *,
    images: str | Path | None = None,
    exif: Exif = "apply",
    files_anywhere: bool = False,
    find: Callable[[str], str | None] | None = None,
) -> Annotations:
    """Parses and checks an annotation file.

    Args:
        path: a JSON file with `images`, `annotations` and `categories`, as COCO's instances_*.json.
        masks: read the segmentations too.
        images: the image folder, where the size of a picture is looked up whose width and height
            are null. Without it such an image has the size (0, 0), and no masks can be read.
        exif: see `read_image`; of the pictures that are looked up.
        files_anywhere: allow file names that lead out of the image folder.
        find: asked for the picture below the image folder that such a file name means, or None.

    Returns:
        Its columns, less the annotations that name no image or category of the file, whose bbox is
        not four finite numbers, whose iscrowd is neither 0 nor 1 or, with `masks`, whose
        segmentation is not polygons or run lengths of the image's size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: broken JSON, a missing key, an id that is no integer or occurs twice, a width or
            height that is no number of pixels, a file name that leads out of the image folder.
    """
    path = Path(path)
    content, slices = read_json_in_slices(path)
    image_records = records(path, content, "images", ("id", "file_name", "width", "height"))
    categories = records(path, content, "categories", ("id", "name"))
    records(path, content, "annotations", ())  # a list; its entries come in slices
    file_names = [file_name(path, image, files_anywhere, find) for image in image_records]
    folder = None if images is None else Path(images)
    sizes = [
        _size(path, image, None if folder is None else folder / name, exif, needed=masks)
        for image, name in zip(image_records, file_names, strict=True)
    ]

    categories = sorted(categories, key=lambda category: category["id"])
    names = _unique_names(path, categories)
    reader = AnnotationReader(
        path,
        {image["id"]: index for index, image in enumerate(image_records)},
        {category["id"]: label for label, category in enumerate(categories, 1)},
        sizes if masks else None,
    )
    for part in slices:
        reader.add(part)
    columns = reader.columns()
    reader.notes.warn()
    return Annotations(
        path=path,
        images=folder,
        image_ids=[image["id"] for image in image_records],
        file_names=file_names,
        image_sizes=np.array(sizes, np.int64).reshape(-1, 2),
        category_ids=[category["id"] for category in categories],
        names=names,
        annotation_ids=columns.ids,
        image_index=columns.image_index,
        labels=columns.labels,
        boxes_xywh=columns.boxes_xywh,
        areas=columns.areas,
        crowd=columns.crowd,
        masks=reader.masks if masks else None,
    )


def file_name(
    path: Path,
    image: dict[str, Any],
    anywhere: bool,
    find: Callable[[str], str | None] | None = None,
) -> str:
    """The image's file below the image folder."""
    name = image["file_name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: image id {image['id']}: expected a file_name, got {name!r}")
    if anywhere or not leads_out(name):
        return name
    found = find(name) if find else None
    if found is None:
        raise ValueError(
            f"{path}: image id {image['id']}: file_name {name!r} leads out of the image folder; "
            "files_anywhere=True allows it"
        )
    return found


def leads_out(name: str) -> bool:
    """Whether a file name leads out of the folder that it starts from."""
    if ".." not in name and not name.startswith(("/", "\\")) and ":" not in name:
        return False  # most are so, and a path is slow to take apart
    parts = PurePath(name)
    return parts.is_absolute() or ".." in parts.parts


def _size(
    path: Path, image: dict[str, Any], file: Path | None, exif: Exif, needed: bool
) -> tuple[int, int]:
    """Height and width of an image, from its file where the record has null."""
    sides = image["height"], image["width"]
    if None in sides and file is not None:
        return image_size(file, exif)
    if None in sides and not needed:
        return 0, 0
    if not all(is_number(side) and 1 <= side <= LONGEST_SIDE for side in sides):
        raise ValueError(
            f"{path}: image id {image['id']}: width and height must be positive, from 1 to "
            f"{LONGEST_SIDE}, got {image['width']!r} and {image['height']!r}"
        )
    return int(sides[0]), int(sides[1])


def _unique_names(path: Path, categories: list[dict[str, Any]]) -> list[str]:
    for category in categories:
        if not isinstance(category["name"], str | int):
            raise ValueError(
                f"{path}: category id {category['id']}: expected a name, got {category['name']!r}"
            )
    counts = Counter(str(category["name"]) for category in categories)
    return [
        name if counts[name] == 1 else f"{name} #{category['id']}"
        for category in categories
        for name in [str(category["name"])]
    ]
