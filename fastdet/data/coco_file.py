# SPDX-License-Identifier: BSD-3-Clause
"""Reading and checking a COCO annotation file.

The file is parsed once, 4 us an annotation. Labels are 1..C in the ascending order of the file's
category ids, so two splits with the same categories agree on them. Masks, if requested, are kept as
run lengths. Defects of a file:

- no JSON, a missing key, an id that is no integer or occurs twice, an image without a size, a file
  name that leads out of the image folder: ValueError, naming file and id;
- an annotation of an unknown image or category, with an unusable box or segmentation, or an iscrowd
  that is neither 0 nor 1: left out, with one warning per kind that counts them and names the first;
- an annotation whose area is no number, or with a bad polygon beside good ones: kept without that,
  with the same warning.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fastdet.data.annotations import AnnotationNotes, Annotations, place
from fastdet.data.images import Exif, image_size
from fastdet.data.segmentations import read_segmentation, without_bad_polygons

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
    content = read_json(path)
    image_records = records(path, content, "images", ("id", "file_name", "width", "height"))
    categories = records(path, content, "categories", ("id", "name"))
    annotations = records(path, content, "annotations", ("id", "image_id", "category_id", "bbox"))
    file_names = [file_name(path, image, files_anywhere, find) for image in image_records]
    folder = None if images is None else Path(images)
    sizes = [
        _size(path, image, None if folder is None else folder / name, exif, needed=masks)
        for image, name in zip(image_records, file_names, strict=True)
    ]

    categories = sorted(categories, key=lambda category: category["id"])
    names = _unique_names(path, categories)
    index_of_image = {image["id"]: index for index, image in enumerate(image_records)}
    label_of_category = {category["id"]: label for label, category in enumerate(categories, 1)}
    kept, areas, rles, notes = [], [], [], AnnotationNotes(path)
    for annotation in annotations:
        where = place(annotation["image_id"], annotation["id"])
        try:
            index, label = _place(annotation, index_of_image, label_of_category)
            bbox, crowd = _bbox(annotation), _crowd(annotation)
            if masks:
                segmentation = annotation.get("segmentation")
                usable = without_bad_polygons(segmentation)
                rles.append(read_segmentation(usable, *sizes[index]))
                if usable is not segmentation:
                    notes.add("kept without a polygon that has no three finite points", where)
        except ValueError as error:
            notes.add(f"skipped: {error}", where)
            continue
        area = annotation.get("area")
        if area is not None and not (_is_number(area) and math.isfinite(area) and area >= 0):
            notes.add("kept with width * height as the area: area is not a number from 0 on", where)
            area = None
        areas.append(bbox[2] * bbox[3] if area is None else area)
        kept.append((annotation["id"], index, label, bbox, crowd))
    notes.warn()

    columns: Any = zip(*kept, strict=True) if kept else [()] * 5
    annotation_ids, image_index, labels, boxes, crowds = columns
    return Annotations(
        path=path,
        images=folder,
        image_ids=[image["id"] for image in image_records],
        file_names=file_names,
        image_sizes=np.array(sizes, np.int64).reshape(-1, 2),
        category_ids=[category["id"] for category in categories],
        names=names,
        annotation_ids=np.array(annotation_ids, np.int64),
        image_index=np.array(image_index, np.int64),
        labels=np.array(labels, np.int64),
        boxes_xywh=np.array(boxes, np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        crowd=np.array(crowds, bool),
        masks=rles if masks else None,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The content of a COCO file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # broken JSON or broken UTF-8
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: a COCO file is a JSON object, this is a {type(content).__name__}"
        )
    return content


def records(
    path: Path, content: dict[str, Any], name: str, keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The list `name` of the file, once each entry has its keys and an id of its own."""
    if not isinstance(content.get(name), list):
        raise ValueError(f"{path}: no list '{name}'")
    noun = {"images": "image", "categories": "category", "annotations": "annotation"}[name]
    seen: set[int] = set()
    for position, record in enumerate(content[name]):
        where = f"{path}: {noun} number {position}"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is not an object")
        identity = record.get("id")
        if "id" in record:
            where = f"{path}: {noun} id {identity!r}"
        for key in keys:
            if key not in record:
                raise ValueError(f"{where} has no '{key}'")
        record["id"] = identity = _integer(identity)
        if identity is None:
            raise ValueError(f"{where}: an id must be an integer")
        if identity in seen:
            raise ValueError(f"{where} occurs more than once")
        seen.add(identity)
    return content[name]


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
    if not all(_is_number(side) and 1 <= side <= LONGEST_SIDE for side in sides):
        raise ValueError(
            f"{path}: image id {image['id']}: width and height must be positive, from 1 to "
            f"{LONGEST_SIDE}, got {image['width']!r} and {image['height']!r}"
        )
    return int(sides[0]), int(sides[1])


def _place(annotation: dict[str, Any], images: dict, labels: dict) -> tuple[int, int]:
    """The index of an annotation's image and its label, or ValueError, which says why not."""
    index = images.get(_integer(annotation["image_id"]))
    if index is None:
        raise ValueError("the image is not in the file")
    label = labels.get(_integer(annotation["category_id"]))
    if label is None:
        raise ValueError("the category is not in the file")
    return index, label


def _bbox(annotation: dict[str, Any]) -> list[float]:
    bbox = annotation["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise ValueError("bbox is not four numbers")
    if not all(map(math.isfinite, bbox)):
        raise ValueError("bbox is not finite")
    return bbox


def _crowd(annotation: dict[str, Any]) -> bool:
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):  # of which False, True, 0.0 and 1.0 are equal to two
        raise ValueError("iscrowd is neither 0 nor 1")
    return bool(crowd)


def _integer(value: Any) -> int | None:
    """An id, which some writers give as 3.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
