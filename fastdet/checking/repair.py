# SPDX-License-Identifier: BSD-3-Clause
"""Writes a repaired copy of a data set, in COCO format. The data set itself is only read.

What is repaired can be decided without a person: flipped corners are exchanged, stated sizes are
those of the pictures, boxes are cut at the border; boxes that are empty, outside or repeated go, as
do annotations that no reader can use and pictures that cannot be decoded. Everything else stays.
The pictures are not copied: OUT/images leads to them by symbolic links.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fastdet.checking.boxes import repeated_rows
from fastdet.checking.check import Report
from fastdet.checking.pictures import PictureFile, plain_path
from fastdet.checking.reading import CheckedSplit, corners_of
from fastdet.data.annotations import Annotations
from fastdet.data.coco_file import read_json
from fastdet.data.segmentations import Rle, as_json
from fastdet.data.writers.coco import records
from fastdet.files import replacing

RLE_REMOVED = "run lengths removed whose picture has another size"


@dataclass(frozen=True)
class Repaired:
    """A split after its repair.

    Attributes:
        split: before it.
        annotations: after it.
        changed: (A,) bool: annotations whose box was changed.
        masks: (A,) where there are some.
        resized: ids of the images whose size was corrected.
    """

    split: CheckedSplit
    annotations: Annotations
    changed: np.ndarray
    masks: list[Rle | None]
    resized: set[int]


def write_repaired(report: Report, out: Path) -> Counter[str]:
    """Writes the repaired copy.

    Args:
        report: of a complete check.
        out: a new or empty folder, outside the data set.

    Returns:
        How often each thing was done, in words.

    Raises:
        ValueError: no split could be read, or the check was stopped.
    """
    if report.stopped or not report.splits:
        why = "the check was stopped" if report.stopped else "no split could be read"
        raise ValueError(f"{out}: nothing was repaired, because {why}")
    done: Counter[str] = Counter()
    some_exist = any(file.problem != "picture-missing" for file in report.files.values())
    results = [_repair(split, report.files, some_exist, done) for split in report.splits]
    for finding in report.findings:
        if finding.name == "annotations-unreadable":
            done[f"splits left out whose annotations cannot be read ({finding.split})"] += 1
        left_out = finding.detail.startswith("skipped")
        if left_out and not finding.name.startswith("segmentation"):
            done[f"annotations removed that cannot be used ({finding.name})"] += finding.count
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        prefixes = _link_images(results, out, written)
        for result, prefix in zip(results, prefixes, strict=True):
            path = out / f"{result.split.name}.json"
            written.append(path)
            write_coco(path, _content(result, prefix, done))
    except BaseException:  # half a data set is none
        for path in written:
            path.unlink(missing_ok=True)
        shutil.rmtree(out / "images", ignore_errors=True)
        raise
    return done


def write_coco(path: Path, content: dict[str, Any]) -> None:
    """Writes the annotation file of one split."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _repair(
    split: CheckedSplit, files: dict[Path, PictureFile], some_exist: bool, done: Counter[str]
) -> Repaired:
    of = split.annotations
    sizes, resized, keep_image = of.image_sizes.copy(), set(), np.ones(len(of.image_ids), bool)
    for index in range(len(of.image_ids)):
        path = plain_path(split, index)
        file = PictureFile() if path is None else files.get(path, PictureFile())
        missing = file.problem == "picture-missing"
        keep_image[index] = not file.problem or (missing and not some_exist)
        if file.sizes and tuple(sizes[index].tolist()) not in file.sizes and keep_image[index]:
            sizes[index] = file.sizes[0]
            resized.add(of.image_ids[index])
    done["pictures removed that are missing or cannot be decoded"] += int((~keep_image).sum())
    done["sizes of pictures corrected"] += len(resized)
    boxes, keep = _repair_boxes(of, sizes, keep_image[of.image_index], done)
    changed = (boxes != of.boxes_xywh).any(1)
    area = boxes[:, 2:].prod(axis=1)
    areas = np.where(changed, np.minimum(np.abs(of.areas), area), of.areas)
    repaired = replace(of, image_sizes=sizes, boxes_xywh=boxes, areas=areas).kept(keep_image, keep)
    masks = [rle for rle, kept in zip(_masks(split), keep, strict=True) if kept]
    return Repaired(split, repaired, changed[keep], masks, resized)


def _repair_boxes(
    of: Annotations, sizes: np.ndarray, of_kept_image: np.ndarray, done: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """All boxes, repaired, and (A,) bool: which of them stay."""
    limits = sizes[of.image_index][:, ::-1]  # (A, 2) width, height
    done["annotations removed with their pictures"] += int((~of_kept_image).sum())
    corners = corners_of(of)
    flipped = np.any(of.boxes_xywh[:, 2:] < 0, axis=1)
    ordered = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    corners = np.where(flipped[:, None], ordered, corners)
    known = np.all(limits > 0, axis=1, keepdims=True)
    cut = np.clip(corners, 0, np.where(known, np.tile(limits, 2), np.inf))
    # As DetectionDataset sees them, in float32.
    empty = np.any(cut[:, 2:].astype(np.float32) <= cut[:, :2].astype(np.float32), axis=1)
    was_cut = np.any(cut != corners, axis=1)
    boxes = np.concatenate([cut[:, :2], cut[:, 2:] - cut[:, :2]], axis=1)
    # What was neither flipped nor cut keeps its very numbers.
    boxes = np.where(np.logical_or(flipped, was_cut)[:, None], boxes, of.boxes_xywh)
    keep = of_kept_image & ~empty
    done["flipped boxes with exchanged corners"] += int((flipped & keep).sum())
    done["boxes cut at the border"] += int((was_cut & ~flipped & keep).sum())
    done["boxes removed that are empty or outside"] += int((empty & of_kept_image).sum())
    rows = np.flatnonzero(keep)
    says = np.column_stack([of.image_index, of.labels, of.crowd, boxes])[rows]
    repeats = rows[repeated_rows(says) != np.arange(len(rows))]
    done["repeated annotations removed"] += len(repeats)
    keep[repeats] = False
    return boxes, keep


def _link_images(results: Sequence[Repaired], out: Path, written: list[Path]) -> list[str]:
    """Links the pictures; returns for each split what its file names get before them."""
    folders = [result.split.annotations.images for result in results]
    known = {folder.absolute() for folder in folders if folder is not None}
    images = out / "images"
    if len(known) == 1:
        images.symlink_to(known.pop(), target_is_directory=True)
        written.append(images)
        return [""] * len(results)
    images.mkdir()
    prefixes = []
    for result, folder in zip(results, folders, strict=True):
        if folder is None:
            prefixes.append("")
            continue
        link = images / result.split.name
        link.symlink_to(folder.absolute(), target_is_directory=True)
        written.append(link)
        prefixes.append(f"{result.split.name}/")
    return prefixes


def _content(result: Repaired, prefix: str, done: Counter[str]) -> dict[str, Any]:
    """The COCO file: of a COCO file every other key stays, of other formats it is made."""
    if result.split.source.format == "coco":
        content = _changed_records(result, done)
    else:
        content = _new_records(result, done)
    for image in content["images"]:
        if not PurePath(image["file_name"]).is_absolute():
            image["file_name"] = prefix + image["file_name"]
    return content


def _changed_records(result: Repaired, done: Counter[str]) -> dict[str, Any]:
    of = result.annotations
    content = read_json(of.path)
    size_of = dict(zip(of.image_ids, of.image_sizes.tolist(), strict=True))
    content["images"] = [image for image in content["images"] if image["id"] in size_of]
    for image in content["images"]:
        if image["id"] in result.resized:
            image["height"], image["width"] = size_of[image["id"]]
    row_of = {int(identity): row for row, identity in enumerate(of.annotation_ids)}
    content["annotations"] = [record for record in content["annotations"] if record["id"] in row_of]
    for record in content["annotations"]:
        row = row_of[record["id"]]
        if result.changed[row]:
            record["bbox"] = of.boxes_xywh[row].tolist()
            record["area"] = float(of.areas[row])
        if record["image_id"] in result.resized and isinstance(record.get("segmentation"), dict):
            del record["segmentation"]
            done[RLE_REMOVED] += 1
    return content


def _new_records(result: Repaired, done: Counter[str]) -> dict[str, Any]:
    of = result.annotations
    if not of.has_ids:  # they count from 1, without holes
        of = replace(of, annotation_ids=np.arange(1, len(of.labels) + 1))
    content = {name: list(some) for name, some in records(of, of.file_names).items()}
    for record, rle in zip(content["annotations"], result.masks, strict=True):
        if rle is not None and record["image_id"] in result.resized:
            done[RLE_REMOVED] += 1
        elif rle is not None:
            record["segmentation"] = as_json(rle)
    return content


def _masks(split: CheckedSplit) -> list[Rle | None]:
    """The mask of each annotation: that of the annotation with the same image, label and box."""
    if split.masked is None or split.masked.masks is None:
        return [None] * len(split.annotations.labels)
    mask_of = dict(zip(_keys(split.masked), split.masked.masks, strict=True))
    return [mask_of.get(key) for key in _keys(split.annotations)]


def _keys(of: Annotations) -> list[tuple[float, ...]]:
    columns = np.column_stack([of.image_index, of.labels, of.crowd, of.boxes_xywh])
    return list(map(tuple, columns.tolist()))
