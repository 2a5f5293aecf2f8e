# SPDX-License-Identifier: BSD-3-Clause
"""COCO: detections.json, a list of results, and images.json, which says what its ids mean.

pycocotools' and hotcoco's loadRes read detections.json. images.json is a COCO file without
annotations.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from fastdet.data.coco_json import integer, read_json, records
from fastdet.files import replacing
from fastdet.predicting.format_options import CsvOptions
from fastdet.predicting.formats.results import Detection, ResultImage, Results

INDEX = "images.json"
_EXPECTED = (
    "expected COCO results, a list of detections with image_id, category_id, bbox [x, y, width, "
    "height] and score"
)


def paths(images: list[ResultImage], out: Path) -> list[Path]:
    """The files that `write` makes."""
    return [out / "detections.json", out / INDEX]


def check_classes(classes: Sequence[str], csv: CsvOptions) -> None:
    """JSON holds any name."""


def write(results: Results, out: Path, csv: CsvOptions) -> None:
    """Writes the list and the description of its ids."""
    file, index = paths(results.images, out)
    write_json(file, detections_of(results))
    write_index(results, index)


def write_index(results: Results, index: Path) -> None:
    """Writes images.json, unless nothing is known or the file says the same already."""
    if results.has_images and not (index.is_file() and describes(index, results)):
        write_json(index, index_of(results))


def describes(index: Path, results: Results) -> bool:
    """Whether a COCO file has exactly the images and the categories of results.

    Raises:
        ValueError: not a COCO file.
    """
    content = read_json(index)
    images = records(index, content, "images", ())
    categories = records(index, content, "categories", ("name",))
    other = Results.of_detections(images, categories, [])
    return (other.images, other.classes, other.category_ids) == (
        results.images,
        results.classes,
        results.category_ids,
    )


def detections_of(results: Results) -> list[dict[str, Any]]:
    """The list of COCO's results."""
    ids = [image.id for image in results.images]
    columns = (results.image_index, results.labels, results.boxes_xywh, results.scores)
    masks = results.segmentations or [None] * len(results.scores)
    return [
        {
            "image_id": ids[index],
            "category_id": results.category_ids[label - 1],
            "bbox": bbox,
            "score": score,
        }
        | ({} if mask is None else {"segmentation": mask})
        for index, label, bbox, score, mask in zip(
            *(column.tolist() for column in columns), masks, strict=True
        )
    ]


def index_of(results: Results) -> dict[str, Any]:
    """The content of images.json."""
    images = [
        {
            name: value
            for name in ("id", "file_name", "height", "width")
            if (value := getattr(image, name)) is not None
        }
        for image in results.images
    ]
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(results.category_ids, results.classes, strict=True)
    ]
    return {"images": images, "categories": categories}


def read_results(path: str | Path, index: str | Path | None = None) -> Results:
    """Reads COCO results, of fastdet or of any other tool.

    Args:
        path: a JSON file with a list of detections.
        index: COCO file with the images and the categories, such as the annotations. None:
            images.json beside `path`; where there is none, ids are all that is known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not COCO results; an id that the index lacks; a number that is not finite;
            a negative size of a box; a name or a size of an image that is none.
    """
    path = Path(path)
    found = _decoded(path)
    _check_numbers(path, found)
    beside = path.parent / INDEX
    if index is None and beside.is_file() and beside != path:
        index = beside
    if index is None:
        images: list[Any] = [{"id": i} for i in sorted({d.image_id for d in found})]
        ids = sorted({d.category_id for d in found})
        categories: list[Any] = [{"id": i, "name": str(i)} for i in ids]
    else:
        index = Path(index)
        content = read_json(index)
        images = records(index, content, "images", ("id", "file_name"))
        categories = records(index, content, "categories", ("id", "name"))
        _check_images(index, images)
        _check_ids(path, index, found, images, categories)
    results = Results.of_detections(images, categories, found)
    return replace(results, has_images=index is not None)


def write_json(path: Path, content: object) -> None:
    """Replaces `path` as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _decoded(path: Path) -> list[Detection]:
    data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=list[Detection])
    except (ValueError, RecursionError) as error:
        reason = str(error)
    try:  # ids written as 3.0, and NaN, which is named later
        return msgspec.convert(_with_integer_ids(json.loads(data)), type=list[Detection])
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: {_EXPECTED}; got: {reason}") from None


def _with_integer_ids(content: Any) -> Any:
    if isinstance(content, list):
        for record in content:
            if isinstance(record, dict):
                for key in ("image_id", "category_id"):
                    record[key] = integer(record.get(key))
    return content


def _check_images(index: Path, images: list[Any]) -> None:
    """Raises ValueError for a name or a size that is none; makes an integer of 480.0."""
    for image in images:
        where = f"{index}: image id {image['id']}"
        name = image["file_name"]
        if name is not None and (not isinstance(name, str) or "\0" in name):
            raise ValueError(f"{where}: expected a file_name, got {name!r}")
        for side in ("height", "width"):
            given = image.get(side)
            if given is None:
                continue
            image[side] = size = integer(given)
            if size is None or not 0 <= size < 2**31:
                raise ValueError(f"{where}: expected a {side} in pixels, got {given!r}")


def _check_numbers(path: Path, found: list[Detection]) -> None:
    for number, detection in enumerate(found):
        x, y, width, height = detection.bbox
        if not all(map(math.isfinite, (x, y, x + width, y + height, detection.score))):
            expected = "finite numbers"
        elif width < 0 or height < 0:
            expected = "a width and a height of 0 or more"
        else:
            continue
        raise ValueError(
            f"{path}: detection {number} of image id {detection.image_id}: expected {expected}, "
            f"got bbox {list(detection.bbox)} and score {detection.score}"
        )


def _check_ids(
    path: Path, index: Path, found: list[Detection], images: list[Any], categories: list[Any]
) -> None:
    known = {image["id"] for image in images}
    strange = next((d.image_id for d in found if d.image_id not in known), None)
    if strange is not None:
        raise ValueError(f"{path}: image id {strange} is not among the images of {index}")
    known = {category["id"] for category in categories}
    strange = next((d.category_id for d in found if d.category_id not in known), None)
    if strange is not None:
        raise ValueError(f"{path}: category id {strange} is not among those of {index}")
