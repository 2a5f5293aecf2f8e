# SPDX-License-Identifier: BSD-3-Clause
"""Small splits with detections, drawn from a seed or by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hotcoco import COCO, COCOeval

from fastdet.analysing.detections import Found
from fastdet.data.annotations import Annotations

SIDE = 100


def annotations_of(
    rows: Sequence[tuple], images: int, classes: Sequence[str], image_ids: list[int] | None = None
) -> Annotations:
    """A split of (image index, label, x, y, width, height, crowd)."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    boxes = table[:, 2:6]
    return Annotations(
        path=Path("val.json"),
        images=None,
        image_ids=image_ids or list(range(1, images + 1)),
        file_names=[f"{i}.jpg" for i in range(images)],
        image_sizes=np.full((images, 2), SIDE),
        category_ids=[10 * label for label in range(1, len(classes) + 1)],
        names=list(classes),
        annotation_ids=np.arange(1, len(table) + 1),
        image_index=table[:, 0].astype(np.int64),
        labels=table[:, 1].astype(np.int64),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=table[:, 6] > 0,
        masks=None,
    )


def found_of(rows: Sequence[tuple], annotations: Annotations) -> Found:
    """Detections of (image index, label, x, y, width, height, score)."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    index, labels = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    return Found(Path("found.json"), index, labels, table[:, 2:6], table[:, 6]).sorted(annotations)


def problem(
    seed: int, crowds: bool = True, ties: bool = False, classes: int = 3
) -> tuple[Annotations, Found]:
    """Twelve objects in four images, whose ids do not ascend, and forty detections around them."""
    rng = np.random.default_rng(seed)
    images, objects, detections = 4, 12, 40
    of, labels = rng.integers(0, images, objects), rng.integers(1, classes + 1, objects)
    boxes = np.concatenate(
        [rng.integers(0, 60, (objects, 2)), rng.integers(10, 40, (objects, 2))], axis=1
    ).astype(float)
    crowd = (rng.random(objects) < 0.25) & crowds
    source = rng.integers(0, objects, detections)
    near = boxes[source] + rng.normal(0, 4, (detections, 4)).round(1 if ties else 9)
    near[:, 2:] = np.maximum(near[:, 2:], 3)
    if ties:
        near[rng.random(detections) < 0.3] = boxes[source[0]]
    far = rng.random(detections) < 0.2
    near[far, :2] = rng.integers(0, 90, (far.sum(), 2))
    said = np.where(
        rng.random(detections) < 0.6, labels[source], rng.integers(1, classes + 1, detections)
    )
    scores = rng.permutation(detections) / detections
    scores = scores.round(1) if ties else scores
    annotations = annotations_of(
        [(i, n, *b, c) for i, n, b, c in zip(of, labels, boxes, crowd, strict=True)],
        images,
        [f"class {n}" for n in range(1, classes + 1)],
        [7, 3, 9, 1],
    )
    rows = [(of[s], n, *b, p) for s, n, b, p in zip(source, said, near, scores, strict=True)]
    return annotations, found_of(rows, annotations)


def in_hotcoco(annotations: Annotations, found: Found, ids: np.ndarray | None = None) -> COCOeval:
    """The problem in hotcoco, not yet evaluated.

    Args:
        annotations, found: of `problem`.
        ids: (I,) another id for each image; None: those of the annotations.
    """
    ids = np.array(annotations.image_ids) if ids is None else ids
    truth = COCO.from_arrays(
        [{"id": i, "width": 100, "height": 100} for i in ids.tolist()],
        [{"id": label, "name": name} for label, name in enumerate(annotations.names, 1)],
        ids[annotations.image_index],
        annotations.labels,
        annotations.boxes_xywh,
        area=annotations.areas,
        iscrowd=annotations.crowd,
    )
    rows = (ids[found.image_index], found.boxes_xywh, found.scores, found.labels)
    return COCOeval(truth, truth.load_res(np.column_stack(rows)), "bbox")
