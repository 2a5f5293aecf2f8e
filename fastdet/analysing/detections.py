# SPDX-License-Identifier: BSD-3-Clause
"""The detections of one side of an analysis as NumPy columns, and COCO results files.

Rows are in the order in which COCO counts them: by image in ascending order of the image ids, and
within an image in the order of the file. Equal scores keep this order. So the numbers here and
those of pycocotools agree where scores are equal, too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from fastdet.data.annotations import Annotations
from fastdet.data.coco_json import read_json, records
from fastdet.data.segmentations import read_segmentation
from fastdet.files import replacing
from fastdet.ops.mask_rle import Rle

IouType = Literal["bbox", "segm"]
NAMES = "images.json"  # beside a results file of `fastdet predict`: the names of its ids


@dataclass(frozen=True)
class Found:
    """The detections of a detector on a split, in the order of COCO.

    Attributes:
        path: the file that they come from.
        image_index: (D,) positions in the annotations' `image_ids`.
        labels: (D,) of the annotations, 1..C.
        boxes_xywh: (D, 4) float64.
        scores: (D,) float64.
        masks: (D,) run lengths; None where there are none.
    """

    path: Path
    image_index: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray
    masks: list[Rle] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, rows: np.ndarray) -> "Found":
        """Some of the detections, in the order of `rows`, (R,) positions."""
        masks = None if self.masks is None else [self.masks[row] for row in rows]
        return replace(
            self,
            image_index=self.image_index[rows],
            labels=self.labels[rows],
            boxes_xywh=self.boxes_xywh[rows],
            scores=self.scores[rows],
            masks=masks,
        )

    def sorted(self, annotations: Annotations) -> "Found":
        """The detections in the order of COCO."""
        ids = np.asarray(annotations.image_ids, np.int64)
        return self.rows(np.argsort(ids[self.image_index], kind="stable"))

    def best(self, most: int) -> "Found":
        """The best `most` detections of each class in each image, as COCO's maxDets."""
        rank = ranks(self.image_index * (self.labels.max(initial=0) + 1) + self.labels, self.scores)
        return self if (rank < most).all() else self.rows(np.flatnonzero(rank < most))


def ranks(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(D,) place of each row in its group, from 0, best score first; equal scores keep the order.

    Args:
        groups: (D,) integers.
        scores: (D,).
    """
    order = np.lexsort((-scores, groups))
    ordered = groups[order]
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return places


def read_results(path: Path, annotations: Annotations, masks: bool) -> tuple[Found, np.ndarray]:
    """Reads a COCO results file: a JSON list of image_id, category_id, bbox and score.

    Where an `images.json` of `fastdet predict` lies beside it, the images are matched by file name
    and the classes by name, and detections on pictures that are not in the split are left out.
    Otherwise the ids are those of the annotations.

    Args:
        path: the file.
        annotations: of the split.
        masks: read the segmentations, which every detection must have.

    Returns:
        The detections; (I,) bool, the images that were looked at, which is known only with an
        `images.json`: without one, all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a results file, or of another data set; it names the first bad row.
    """
    rows = _read_rows(path)
    columns = _columns(path, rows)
    image_ids, category_ids, boxes, scores = columns
    index_of = {identity: index for index, identity in enumerate(annotations.image_ids)}
    label_of = {identity: label for label, identity in enumerate(annotations.category_ids, 1)}
    looked_at = np.ones(len(annotations.image_ids), bool)
    known = np.ones(len(rows), bool)
    names = path.with_name(NAMES)
    if names.exists():
        index_of, label_of = _by_name(names, annotations)
        inside = {index for index in index_of.values() if index is not None}
        looked_at = np.isin(np.arange(len(looked_at)), list(inside))
        known = np.array([index_of.get(one, 0) is not None for one in image_ids], bool)
    image_index = _positions(path, "image_id", image_ids, index_of, annotations.path)
    labels = _positions(path, "category_id", category_ids, label_of, annotations.path)
    found = Found(path, image_index, labels, boxes, scores)
    if masks:
        found = replace(found, masks=_masks(path, rows, found, known, annotations))
    return found.rows(np.flatnonzero(known)).sorted(annotations), looked_at


def write_results(path: Path, found: Found, annotations: Annotations) -> None:
    """Writes detections as a COCO results file, with the ids of the annotations."""
    image_ids = np.asarray(annotations.image_ids, np.int64)[found.image_index].tolist()
    category_ids = np.asarray(annotations.category_ids, np.int64)[found.labels - 1].tolist()
    columns = zip(
        image_ids, category_ids, found.boxes_xywh.tolist(), found.scores.tolist(), strict=True
    )
    rows: list[dict[str, Any]] = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in columns
    ]
    for row, mask in zip(rows, found.masks or (), strict=False):
        row["segmentation"] = {"size": list(mask["size"]), "counts": _text(mask["counts"])}
    with replacing(path) as temporary:
        temporary.write_bytes(msgspec.json.encode(rows))


def check_iou_type(iou_type: str) -> None:
    """Raises ValueError for anything but "bbox" and "segm"."""
    if iou_type not in get_args(IouType):
        raise ValueError(f"iou_type: expected {' or '.join(get_args(IouType))}, got {iou_type}")


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def _read_rows(path: Path) -> list[Any]:
    data = path.read_bytes()
    try:
        rows = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        try:
            rows = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected COCO results, got no JSON: {error}") from None
    if not isinstance(rows, list):
        hint = (
            ", which has the ground truth: give it as --data"
            if isinstance(rows, dict) and "annotations" in rows
            else ""
        )
        raise ValueError(
            f"{path}: expected COCO results, a list of detections with image_id, category_id, "
            f"bbox and score; got an object{hint}"
            if isinstance(rows, dict)
            else f"{path}: expected COCO results, a list of detections, got {type(rows).__name__}"
        )
    return rows


def _columns(
    path: Path, rows: Sequence[Any]
) -> tuple[list[Any], list[Any], np.ndarray, np.ndarray]:
    """Image ids, category ids, boxes (D, 4) and scores (D,)."""
    try:
        image_ids = [row["image_id"] for row in rows]
        category_ids = [row["category_id"] for row in rows]
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(len(rows), -1)
        scores = np.array([row["score"] for row in rows], np.float64).reshape(len(rows), -1)
    except (KeyError, TypeError, ValueError, IndexError):
        raise ValueError(_bad_row(path, rows)) from None
    if not rows:
        return [], [], np.zeros((0, 4)), np.zeros(0)
    if boxes.shape[1] != 4 or scores.shape[1] != 1:
        raise ValueError(_bad_row(path, rows))
    bad = ~(np.isfinite(boxes).all(1) & np.isfinite(scores[:, 0]) & (boxes[:, 2:] >= 0).all(1))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{path}: row {row}: expected a finite score and a bbox [x, y, width, height] with "
            f"sides from 0 on, got score {rows[row]['score']} and bbox {rows[row]['bbox']}"
        )
    return image_ids, category_ids, boxes, scores[:, 0]


def _bad_row(path: Path, rows: Sequence[Any]) -> str:
    """What is wrong with the first row that is no detection."""
    expected = "expected image_id, category_id, bbox (four numbers) and score (a number)"
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"{path}: row {number}: {expected}, got {type(row).__name__}"
        absent = [key for key in ("image_id", "category_id", "bbox", "score") if key not in row]
        if absent:
            return f"{path}: row {number}: {expected}; it has no {' and no '.join(absent)}"
        box, score = row["bbox"], row["score"]
        numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else [None]
        if not all(type(one) in (int, float) for one in numbers):
            return f"{path}: row {number}: {expected}, got bbox {box} and score {score}"
    return f"{path}: {expected}"


def _positions(
    path: Path, key: str, ids: list[Any], of: dict[Any, Any], annotations: Path
) -> np.ndarray:
    """(D,) what each id means; 0 for None, which is known and not in the split."""
    try:
        return np.array([of[one] or 0 for one in ids], np.int64)
    except (KeyError, TypeError):
        row, bad = next(
            (i, one) for i, one in enumerate(ids) if not isinstance(one, int) or one not in of
        )
        raise ValueError(
            f"{path}: row {row}: expected {key} of {annotations}, got {bad!r}: are these detections"
            " of another split?"
        ) from None


def _by_name(
    names: Path, annotations: Annotations
) -> tuple[dict[int, int | None], dict[int, int | None]]:
    """What the ids of an `images.json` mean here: image id -> index, category id -> label.

    A picture that is not in the split has the index None. File names are compared part by part from
    the end, so one may begin further up in the folders than the other.
    """
    content = read_json(names)
    images = records(names, content, "images", ("id", "file_name"))
    categories = records(names, content, "categories", ("id", "name"))
    label_of = {name: label for label, name in enumerate(annotations.names, 1)}
    unknown = [str(c["name"]) for c in categories if str(c["name"]) not in label_of]
    if unknown:
        raise ValueError(
            f"{names} has the class {unknown[0]}; {annotations.path} has "
            f"{', '.join(annotations.names)}"
        )
    by_last: dict[str, list[int]] = {}
    for index, name in enumerate(annotations.file_names):
        by_last.setdefault(PurePath(name).name, []).append(index)
    index_of: dict[int, int | None] = {}
    for image in images:
        parts = PurePath(str(image["file_name"])).parts
        same = [
            index
            for index in by_last.get(parts[-1] if parts else "", [])
            if _agree(parts, PurePath(annotations.file_names[index]).parts)
        ]
        if len(same) > 1:
            both = " and ".join(annotations.file_names[index] for index in same[:2])
            raise ValueError(f"{names}: {image['file_name']} may be {both} of {annotations.path}")
        index_of[image["id"]] = same[0] if same else None
    if all(index is None for index in index_of.values()):
        raise ValueError(f"{names}: none of its {len(images)} pictures is in {annotations.path}")
    return index_of, {c["id"]: label_of[str(c["name"])] for c in categories}


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    length = min(len(one), len(other))
    return one[-length:] == other[-length:]


def _masks(
    path: Path, rows: Sequence[Any], found: Found, known: np.ndarray, annotations: Annotations
) -> list[Rle]:
    masks: list[Rle] = []
    for number, (row, index) in enumerate(zip(rows, found.image_index.tolist(), strict=True)):
        height, width = annotations.image_sizes[index].tolist()
        if not known[number]:
            masks.append({"size": [height, width], "counts": b""})  # dropped below
            continue
        try:
            masks.append(read_segmentation(row.get("segmentation"), height, width))
        except ValueError as error:
            raise ValueError(
                f"{path}: row {number}: iou_type segm expects a segmentation in every detection, "
                f"got {error}"
            ) from None
    return masks
