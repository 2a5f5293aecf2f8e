# SPDX-License-Identifier: BSD-3-Clause
"""Reading and checking a COCO annotation file.

The file is parsed once, into a few NumPy columns: 65 bytes and 4 us an annotation. Labels are 1..C
in the ascending order of the file's category ids, so two splits with the same categories agree on
them. Masks, if requested, are kept as run lengths. Defects of a file:

- no JSON, a missing key, an id that is no integer or occurs twice: ValueError, naming file and id;
- an annotation of an unknown image or category, or with an unusable box or segmentation: left out,
  with one warning per kind that counts them and names the first.
"""

import json
import math
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdet.data.segmentations import Rle, read_segmentation


@dataclass(frozen=True)
class CocoFile:
    """The columns of one annotation file; images and annotations keep the file's order.

    Attributes:
        path: where it was read.
        image_ids: (I,) of the file.
        file_names: (I,) below the image folder.
        image_sizes: (I, 2) height, width as recorded.
        category_ids: (C,) ascending; label l is `category_ids[l - 1]`.
        names: (C,) unique: where a file gives a name twice, its id is added.
        annotation_ids: (A,).
        image_index: (A,) position in `image_ids`.
        labels: (A,) 1..C.
        boxes_xywh: (A, 4) float64 as written, neither clipped nor checked for size.
        areas: (A,) float64, width * height where the file has none.
        crowd: (A,) bool.
        masks: (A,) run lengths, each of its image's size; None where they were not asked for.
    """

    path: Path
    image_ids: list[int]
    file_names: list[str]
    image_sizes: np.ndarray
    category_ids: list[int]
    names: list[str]
    annotation_ids: np.ndarray
    image_index: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    masks: list[Rle] | None


class SkippedAnnotations:
    """Counts the annotations of one file that were left out, by kind, and warns once for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, tuple[int, Any, Any]] = {}

    def add(self, kind: str, image_id: Any, annotation_id: Any, count: int = 1) -> None:
        """Notes `count` more of a kind; the ids of its first one are kept."""
        before, first_image, first_annotation = self.found.get(kind, (0, image_id, annotation_id))
        self.found[kind] = (before + count, first_image, first_annotation)

    def warn(self) -> None:
        """One UserWarning per kind."""
        for kind, (count, image_id, annotation_id) in self.found.items():
            warnings.warn(
                f"{self.path}: {count} annotation{'s' if count > 1 else ''} skipped: {kind} "
                f"(first: image id {image_id}, annotation id {annotation_id})",
                stacklevel=3,
            )


def read_coco_file(path: str | Path, masks: bool = False) -> CocoFile:
    """Parses and checks an annotation file.

    Args:
        path: a JSON file with `images`, `annotations` and `categories`, as COCO's instances_*.json.
        masks: read the segmentations too.

    Returns:
        Its columns, less the annotations that name no image or category of the file, whose bbox is
        not four finite numbers or, with `masks`, whose segmentation is not polygons or run lengths
        of the image's size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: broken JSON, a missing key, an id that is no integer or occurs twice.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # broken JSON or broken UTF-8
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: a COCO file is a JSON object, this is a {type(content).__name__}"
        )
    images = _records(path, content, "images", ("id", "file_name", "width", "height"))
    categories = _records(path, content, "categories", ("id", "name"))
    annotations = _records(path, content, "annotations", ("id", "image_id", "category_id", "bbox"))
    for image in images:
        if not all(_is_number(image[side]) and image[side] > 0 for side in ("width", "height")):
            raise ValueError(f"{path}: image id {image['id']}: width and height must be positive")

    categories = sorted(categories, key=lambda category: category["id"])
    index_of_image = {image["id"]: index for index, image in enumerate(images)}
    label_of_category = {category["id"]: label for label, category in enumerate(categories, 1)}
    kept, rles, skipped = [], [], SkippedAnnotations(path)
    for annotation in annotations:
        try:
            _check(annotation, index_of_image, label_of_category)
            if masks:
                image = images[index_of_image[annotation["image_id"]]]
                size = int(image["height"]), int(image["width"])
                rles.append(read_segmentation(annotation.get("segmentation"), *size))
            kept.append(annotation)
        except ValueError as error:
            skipped.add(str(error), annotation["image_id"], annotation["id"])
    skipped.warn()

    boxes = np.array([annotation["bbox"] for annotation in kept], np.float64).reshape(-1, 4)
    areas = [
        annotation.get("area", width * height)
        for annotation, (width, height) in zip(kept, boxes[:, 2:], strict=True)
    ]
    return CocoFile(
        path=path,
        image_ids=[image["id"] for image in images],
        file_names=[str(image["file_name"]) for image in images],
        image_sizes=np.array(
            [(image["height"], image["width"]) for image in images], np.int64
        ).reshape(-1, 2),
        category_ids=[category["id"] for category in categories],
        names=_unique_names(categories),
        annotation_ids=np.array([annotation["id"] for annotation in kept], np.int64),
        image_index=np.array([index_of_image[a["image_id"]] for a in kept], np.int64),
        labels=np.array([label_of_category[a["category_id"]] for a in kept], np.int64),
        boxes_xywh=boxes,
        areas=np.array(areas, np.float64),
        crowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in kept], bool),
        masks=rles if masks else None,
    )


def _records(path: Path, content: dict, name: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
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
        if not isinstance(identity, int) or isinstance(identity, bool):
            raise ValueError(f"{where}: an id must be an integer")
        if identity in seen:
            raise ValueError(f"{where} occurs more than once")
        seen.add(identity)
    return content[name]


def _check(annotation: dict[str, Any], images: dict, labels: dict) -> None:
    """Raises ValueError, saying why, where an annotation cannot be used."""
    bbox = annotation["bbox"]
    if not _is_known(annotation["image_id"], images):
        raise ValueError("the image is not in the file")
    if not _is_known(annotation["category_id"], labels):
        raise ValueError("the category is not in the file")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise ValueError("bbox is not four numbers")
    if not all(map(math.isfinite, bbox)):
        raise ValueError("bbox is not finite")


def _is_known(identity: Any, known: dict) -> bool:
    return isinstance(identity, int) and identity in known


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_names(categories: list[dict[str, Any]]) -> list[str]:
    counts = Counter(str(category["name"]) for category in categories)
    return [
        name if counts[name] == 1 else f"{name} #{category['id']}"
        for category in categories
        for name in [str(category["name"])]
    ]
