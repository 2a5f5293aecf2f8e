# SPDX-License-Identifier: BSD-3-Clause
"""Results on a split of a data set: its pictures and classes are found by name, where one is known.

`fastdet eval`, `analyse` and `view` all read results here, so they agree about what counts:

- With images.json beside the results, pictures and classes are found by name. A picture that the
  split lacks has no ground truth: it is left out, and one warning counts these pictures. A picture
  of the split that images.json lacks was not looked at: nothing in it counts as missed.
- Without it, ids are those of the data set, another id is an error, and all pictures count.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastdet.data.annotations import Annotations
from fastdet.data.classes import Classes
from fastdet.data.segmentations import Rle, read_segmentation
from fastdet.predicting.formats.coco import INDEX
from fastdet.predicting.formats.matching import same_names
from fastdet.predicting.formats.results import ResultImage, Results

ABSENT = -1


@dataclass(frozen=True)
class OnSplit:
    """Results with the images and the classes of a split.

    Attributes:
        file: that they come from.
        results: their images and labels are those of the annotations; what lies on other pictures
            is left out.
        rows: (D,) the place of each detection in the file, from 0 on.
        looked_at: (I,) bool; the images of the split that the detector has seen.
        known: (C,) bool; the classes of the split that the detector knows.
    """

    file: Path
    results: Results
    rows: np.ndarray
    looked_at: np.ndarray
    known: np.ndarray

    def masks(self) -> list[Rle]:
        """The mask of every detection.

        Raises:
            ValueError: a detection without one, or with one that cannot be read.
        """
        results, masks = self.results, []
        segmentations = results.segmentations or [None] * len(results.scores)
        for row, index, segmentation in zip(
            self.rows.tolist(), results.image_index.tolist(), segmentations, strict=True
        ):
            image = results.images[index]
            try:
                masks.append(
                    read_segmentation(segmentation, int(image.height or 0), int(image.width or 0))
                )
            except ValueError as error:
                raise ValueError(
                    f"{self.file}: row {row}, a detection of {image}: expected a segmentation in "
                    f"every detection, got {error}"
                ) from None
        return masks


def on_split(
    file: Path, results: Results, annotations: Annotations, drop_other_classes: bool = False
) -> OnSplit:
    """Finds the pictures and the classes of results in a split.

    Args:
        file: that the results come from.
        results: see `read_results`.
        annotations: of the split.
        drop_other_classes: allow classes of the split that the results lack; see `OnSplit.known`.

    Raises:
        ValueError: no picture of the split; a name that may be several pictures, or two that are
            one; a class or an id that the split lacks; a class that the results lack.
    """
    if results.has_images:
        positions = _images_by_name(file, results, annotations)
        labels = _labels_by_name(file.parent / INDEX, results, annotations, drop_other_classes)
        looked_at = np.isin(np.arange(len(annotations.image_ids)), positions)
        known = np.isin(np.arange(1, len(annotations.names) + 1), labels)
    else:
        positions = _by_id(file, "image", results, annotations)
        labels = np.append(0, _by_id(file, "category", results, annotations) + 1)
        looked_at = np.ones(len(annotations.image_ids), bool)
        known = np.ones(len(annotations.names), bool)
    image_index = positions[results.image_index]
    rows = np.flatnonzero(image_index != ABSENT)
    described = zip(
        annotations.image_ids,
        annotations.file_names,
        annotations.image_sizes.tolist(),
        strict=True,
    )
    kept = results if len(rows) == len(image_index) else results.kept(rows, results.scores[rows])
    here = replace(
        kept,
        images=[ResultImage(i, name, height, width) for i, name, (height, width) in described],
        classes=list(annotations.names),
        category_ids=list(annotations.category_ids),
        image_index=image_index[rows],
        labels=labels[kept.labels],
        has_images=True,
    )
    return OnSplit(file, here, rows, looked_at, known)


def _images_by_name(file: Path, results: Results, annotations: Annotations) -> np.ndarray:
    """(R,) the position in the split of each image of the results, or ABSENT."""
    names = [str(image.file_name) for image in results.images]
    positions = np.full(len(names), ABSENT)
    result_of: dict[int, str] = {}
    for number, (name, same) in enumerate(
        zip(names, same_names(names, annotations.file_names), strict=True)
    ):
        theirs = [annotations.file_names[index] for index in same[:2]]
        if len(same) > 1:
            raise ValueError(
                f"{file}: expected the pictures of {annotations.path}, but {name} may be "
                f"{' or '.join(theirs)}"
            )
        if not same:
            continue
        if same[0] in result_of:
            raise ValueError(
                f"{file}: expected the pictures of {annotations.path}, but {result_of[same[0]]} "
                f"and {name} are both {theirs[0]}"
            )
        result_of[same[0]] = name
        positions[number] = same[0]
    absent = np.flatnonzero(positions == ABSENT).tolist()
    if len(absent) == len(names):
        raise ValueError(
            f"{file}: expected the pictures of {annotations.path}, but none of its "
            f"{len(names):,} is among them" + (f", such as {names[0]}" if names else "")
        )
    if absent:
        warnings.warn(
            f"{file}: {len(absent):,} of {len(names):,} pictures are not in {annotations.path} and "
            f"are left out: {', '.join(names[i] for i in absent[:3])}"
            + (", ..." if len(absent) > 3 else ""),
            stacklevel=3,
        )
    return positions


def _labels_by_name(
    index: Path, results: Results, annotations: Annotations, drop_others: bool
) -> np.ndarray:
    """(K + 1,) the label in the split of each label of the results; 0 stays 0."""
    twice = [name for i, name in enumerate(results.classes) if name in results.classes[:i]]
    if twice:
        raise ValueError(f"{index}: expected classes of different names, got {twice[0]} twice")
    classes = Classes(["background", *results.classes], index, drop_others)
    theirs = classes.labels_of(["background", *annotations.names], annotations.path)
    labels = np.zeros(len(classes.names), np.int64)
    labels[theirs[1:]] = np.arange(1, len(theirs))
    labels[0] = 0  # what is left out
    return labels


def _by_id(file: Path, what: str, results: Results, annotations: Annotations) -> np.ndarray:
    """The position in the split of each image or category of the results."""
    of_images = what == "image"
    ids = [image.id for image in results.images] if of_images else results.category_ids
    theirs = annotations.image_ids if of_images else annotations.category_ids
    position = {identity: index for index, identity in enumerate(theirs)}
    strange = [number for number, identity in enumerate(ids) if identity not in position]
    if strange:
        own = results.image_index if of_images else results.labels - 1
        row = int(np.flatnonzero(np.isin(own, strange))[0])
        raise ValueError(
            f"{file}: row {row}: expected the {what} ids of {annotations.path}, got "
            f"{ids[own[row]]}: are these detections of another split?"
        )
    return np.array([position[identity] for identity in ids], np.int64)
