# SPDX-License-Identifier: BSD-3-Clause
"""The COCO metrics of a file of results: of an ensemble, or of any tool that writes COCO results.

Pictures and classes are those of images.json beside the results. They are found in the data set by
name, as ids may differ there. Without images.json the ids are those of the data set.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from fastdet.data.annotations import Annotations
from fastdet.data.classes import Classes
from fastdet.data.opening import read_split
from fastdet.data.segmentations import Rle, read_segmentation
from fastdet.evaluation.coco_metrics import CocoEvaluator, CocoMetrics
from fastdet.predicting.formats.coco import read_results
from fastdet.predicting.formats.matching import agree, renumbered
from fastdet.predicting.formats.results import ResultImage, Results
from fastdet.training.options import PictureOptions


def evaluate_results(
    file: Path,
    data: Path,
    split: str = "val",
    *,
    drop_other_classes: bool = False,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
) -> CocoMetrics:
    """COCO metrics of a file of results on a split of a data set.

    The images of images.json are evaluated; without that file, all images of the split. Masks are
    evaluated too if every detection has one.

    Args:
        file: see `read_results`.
        data, split: see `fastdet.data.open_dataset`.
        drop_other_classes: leave out what the split has of classes that the results lack.
        pictures: how the sizes of pictures are read that the annotations do not state.
        files_anywhere: see `fastdet.data.open_dataset`.

    Raises:
        FileNotFoundError: no such file or split.
        ValueError: not COCO results; a picture, a class or an id that the split lacks.
    """
    results = read_results(file)
    masks = bool(results.segmentations) and all(results.segmentations or [])
    truth = read_split(data, split, masks, exif=pictures.exif, files_anywhere=files_anywhere)
    if results.has_images:
        image_ids = _image_ids_by_name(file, results.images, truth)
        category_ids = _category_ids_by_name(file, results, truth, drop_other_classes)
    else:
        results = _with_all_ids_of(truth, file, results)
        image_ids, category_ids = truth.image_ids, truth.category_ids
    sizes = dict(zip(truth.image_ids, truth.image_sizes.tolist(), strict=True))
    evaluator = CocoEvaluator(truth, category_ids, masks, exif=pictures.exif)
    for image_id, image, rows in zip(image_ids, results.images, results.rows(), strict=True):
        found: dict[str, Any] = {
            "boxes": torch.from_numpy(results.boxes[rows]),
            "scores": torch.from_numpy(results.scores[rows]),
            "labels": torch.from_numpy(results.labels[rows]),
        }
        if masks:
            found["segmentations"] = [
                _mask(file, results, image, row, *sizes[image_id]) for row in rows
            ]
        evaluator.update([image_id], [found])
    return evaluator.compute()


def _image_ids_by_name(file: Path, images: list[ResultImage], truth: Annotations) -> list[int]:
    """The image id of each image in the data set.

    Raises:
        ValueError: the split has no picture of that name, or several; two images are one of it.
    """
    of_base: dict[str, list[int]] = {}
    for index, name in enumerate(truth.file_names):
        of_base.setdefault(PurePosixPath(name).name, []).append(index)
    found: dict[int, str] = {}
    for image in images:
        name = str(image.file_name)
        same = [
            index
            for index in of_base.get(PurePosixPath(name).name, [])
            if agree(name, truth.file_names[index])
        ]
        if len(same) != 1:
            names = ", ".join(truth.file_names[index] for index in same[:3])
            raise ValueError(
                f"{file}: expected the pictures of {truth.path}, but {name} "
                + (f"may be any of {names}" if same else "is not among them")
            )
        image_id = truth.image_ids[same[0]]
        if image_id in found:
            raise ValueError(
                f"{file}: expected each picture of {truth.path} once, but {found[image_id]} and "
                f"{name} may both be {truth.file_names[same[0]]}"
            )
        found[image_id] = name
    return list(found)


def _category_ids_by_name(
    file: Path, results: Results, truth: Annotations, drop_others: bool
) -> list[int]:
    """For each label of the results, its category id in the data set."""
    classes = Classes(["background", *results.classes], file, drop_others)
    labels = classes.labels_of(["background", *truth.names], truth.path)
    ids = dict(zip(labels[1:].tolist(), truth.category_ids, strict=True))
    return [ids[label] for label in range(1, len(classes.names))]


def _with_all_ids_of(truth: Annotations, file: Path, results: Results) -> Results:
    """The results with all images and categories of the data set.

    Raises:
        ValueError: an id that the data set lacks.
    """
    for what, ids, known in (
        ("image", [image.id for image in results.images], set(truth.image_ids)),
        ("category", results.category_ids, set(truth.category_ids)),
    ):
        strange = next((i for i in ids if i not in known), None)
        if strange is not None:
            raise ValueError(f"{file}: expected the {what} ids of {truth.path}, got {strange}")
    images = [ResultImage(i) for i in truth.image_ids]
    base = replace(
        results, images=images, classes=truth.names, category_ids=list(truth.category_ids)
    )
    return renumbered(results, base)


def _mask(
    file: Path, results: Results, image: ResultImage, row: int, height: int, width: int
) -> Rle:
    assert results.segmentations is not None
    try:
        return read_segmentation(results.segmentations[row], height, width)
    except ValueError as error:
        raise ValueError(f"{file}: a detection of {image}: {error}") from error
