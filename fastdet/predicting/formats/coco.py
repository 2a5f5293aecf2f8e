# SPDX-License-Identifier: BSD-3-Clause
"""COCO: detections.json, a list of results, and images.json, which says what its ids mean.

pycocotools' and hotcoco's loadRes read detections.json. images.json is a COCO file without
annotations.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fastdet.data.coco_json import integer, read_json, records
from fastdet.files import replacing
from fastdet.predicting.format_options import CsvOptions
from fastdet.predicting.formats.results import Detection, ResultImage, Results

INDEX = "images.json"
_EXPECTED = "expected COCO results, a list of detections with image_id, category_id, bbox and score"
_ROW = "expected image_id and category_id (integers), bbox (four numbers) and score (a number)"


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
    """Reads COCO results, of fastdet or of any other tool. Cost: 2 s for a million detections.

    Args:
        path: a JSON file with a list of detections.
        index: COCO file with the images and the categories, such as the annotations. None:
            images.json beside `path`; where there is none, ids are all that is known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not COCO results; an id that the index lacks; a number that is not finite; a
            box with a side below 0; a name or a size of an image that is none. It names the first
            such row, counted from 0.
    """
    path = Path(path)
    found = _decoded(path)
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
    _check_numbers(path, results)
    return replace(results, has_images=index is not None)


def write_json(path: Path, content: object) -> None:
    """Replaces `path` as a whole."""
    try:
        data = msgspec.json.encode(content)
    except UnicodeEncodeError:  # a file name that is not UTF-8: JSON can escape it
        data = json.dumps(content).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _decoded(path: Path) -> list[Detection]:
    data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=list[Detection])
    except (ValueError, RecursionError):
        pass  # ids written as 3.0, and NaN, which is named later
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_EXPECTED}; got no JSON: {error}") from None
    if not isinstance(rows, list):
        hint = ""
        if isinstance(rows, dict) and "annotations" in rows:
            hint = ", which has the ground truth: give it as --data"
        raise ValueError(f"{path}: {_EXPECTED}; got {_noun(rows)}{hint}")
    try:
        return msgspec.convert(_with_integer_ids(rows), type=list[Detection])
    except (ValueError, OverflowError, RecursionError):
        raise ValueError(f"{path}: {_bad_row(rows)}") from None


def _with_integer_ids(rows: list[Any]) -> list[Any]:
    for row in rows:
        if isinstance(row, dict):
            for key in ("image_id", "category_id"):
                if (number := integer(row.get(key))) is not None:
                    row[key] = number
    return rows


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


def _bad_row(rows: list[Any]) -> str:
    """What is wrong with the first row that is no detection."""
    for number, row in enumerate(rows):
        try:
            msgspec.convert(row, Detection)
        except (ValueError, OverflowError, RecursionError):
            if not isinstance(row, dict):
                return f"row {number}: {_ROW}, got {_noun(row)}"
            keys = ("image_id", "category_id", "bbox", "score")
            absent = [key for key in keys if key not in row]
            if absent:
                return f"row {number}: {_ROW}; it has no {' and no '.join(absent)}"
            said = (f"{key} {json.dumps(row[key])[:80]}" for key in keys)
            return f"row {number}: {_ROW}, got {', '.join(said)}"
    return _EXPECTED


def _noun(value: Any) -> str:
    return {dict: "an object", list: "a list"}.get(type(value), json.dumps(value)[:80])


def _check_numbers(path: Path, results: Results) -> None:
    boxes, scores = results.boxes_xywh, results.scores
    with np.errstate(over="ignore"):
        ends = boxes[:, :2] + boxes[:, 2:]  # may overflow where the sides do not
    finite = np.isfinite(ends).all(1) & np.isfinite(boxes).all(1) & np.isfinite(scores)
    good = finite & (boxes[:, 2:] >= 0).all(1)
    if not good.all():
        row = int(good.argmin())
        raise ValueError(
            f"{path}: row {row}: expected a finite score and a bbox [x, y, width, height] with "
            f"sides from 0 on, got score {scores[row]:g} and bbox {boxes[row].tolist()}"
        )


def _check_ids(
    path: Path, index: Path, found: list[Detection], images: list[Any], categories: list[Any]
) -> None:
    for what, ids, known, of in (
        ("image", [d.image_id for d in found], images, "the images"),
        ("category", [d.category_id for d in found], categories, "those"),
    ):
        strange = set(ids) - {record["id"] for record in known}
        if strange:
            row = next(row for row, one in enumerate(ids) if one in strange)
            raise ValueError(
                f"{path}: row {row}: {what} id {ids[row]} is not among {of} of {index}"
            )
