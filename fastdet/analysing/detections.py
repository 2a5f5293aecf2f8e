# SPDX-License-Identifier: BSD-3-Clause
"""The detections of one side of an analysis as NumPy columns, from and to COCO results files.

Rows are in the order in which COCO counts them: by image in ascending order of the image ids, and
within an image in the order of the file. Equal scores keep this order. So the numbers here and
those of pycocotools agree where scores are equal, too.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from fastdet.data.annotations import Annotations
from fastdet.data.segmentations import as_json
from fastdet.ops.mask_rle import Rle
from fastdet.predicting.formats import coco
from fastdet.predicting.formats.results import ResultImage, Results
from fastdet.predicting.on_split import OnSplit, on_split

IouType = Literal["bbox", "segm"]


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


def read_found(
    path: Path, annotations: Annotations, masks: bool, drop_other_classes: bool = False
) -> tuple[Found, OnSplit]:
    """Reads a COCO results file on a split, as `fastdet eval --results` does.

    Args:
        path: the file.
        annotations: of the split.
        masks: read the segmentations, which every detection must have.
        drop_other_classes: see `on_split`.

    Returns:
        The detections, and what is known of them: the images that were looked at, and the classes
        that the detector knows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a results file, or of another data set; it names the first bad row.
    """
    here = on_split(path, coco.read_results(path), annotations, drop_other_classes)
    return found_of(here, masks).sorted(annotations), here


def found_of(here: OnSplit, masks: bool) -> Found:
    """Results on a split as columns, in the order of the file; see `Found.sorted`."""
    results = here.results
    return Found(
        here.file,
        results.image_index,
        results.labels,
        results.boxes_xywh,
        results.scores,
        here.masks() if masks else None,
    )


def write_results(path: Path, found: Found, annotations: Annotations) -> None:
    """Writes detections as a COCO results file, with the ids of the annotations."""
    results = Results(
        [ResultImage(identity) for identity in annotations.image_ids],
        annotations.names,
        annotations.category_ids,
        found.image_index,
        found.labels,
        found.boxes_xywh,
        found.scores,
        None if found.masks is None else [as_json(mask) for mask in found.masks],
    )
    coco.write_json(path, coco.detections_of(results))


def check_iou_type(iou_type: str) -> None:
    """Raises ValueError for anything but "bbox" and "segm"."""
    if iou_type not in get_args(IouType):
        raise ValueError(f"iou_type: expected {' or '.join(get_args(IouType))}, got {iou_type}")
