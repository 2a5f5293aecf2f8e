# SPDX-License-Identifier: BSD-3-Clause
"""COCO's numbers of an analysis: AP and AR by class and size, and curves, through hotcoco."""

from typing import Any, NamedTuple

import numpy as np
from hotcoco import COCO, COCOeval

from fastdet.analysing.detections import Found, IouType
from fastdet.data.annotations import Annotations
from fastdet.evaluation.coco_metrics import CocoEvaluator, stats_of

SIZES = ("all", "small", "medium", "large")
PROPOSALS = (100, 300, 1000)  # of an image, for which the recall is given
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


class CocoNumbers(NamedTuple):
    """COCO's numbers. NaN where there is no object.

    Attributes:
        stats: the twelve numbers by name; -1 where there is no object.
        AP, AP50, AP75, AR: (C,) of the classes.
        AP_by_size: (C, 3) of the small, medium and large objects of the classes.
        recalls: (101,).
        precisions: (C, 101) at the IoU threshold of the analysis.
    """

    stats: dict[str, float]
    AP: np.ndarray
    AP50: np.ndarray
    AP75: np.ndarray
    AR: np.ndarray
    AP_by_size: np.ndarray
    recalls: np.ndarray
    precisions: np.ndarray


def coco_numbers(
    annotations: Annotations,
    found: Found,
    iou_type: IouType,
    max_detections: int,
    iou_threshold: float,
) -> CocoNumbers:
    """The numbers of all images of the annotations.

    Args:
        annotations: of the split, with masks for "segm".
        found: the detections.
        iou_type: compare boxes or masks.
        max_detections: of a class in an image.
        iou_threshold: of `IOU_THRESHOLDS`, for the curves.
    """
    masks = iou_type == "segm"
    evaluator = CocoEvaluator(
        annotations, annotations.category_ids, masks, max_detections=max_detections
    )
    evaluator.update_all(
        found.image_index, found.labels, found.boxes_xywh, found.scores, found.masks
    )
    evaluation = evaluator.accumulated(iou_type)
    assert evaluation.eval is not None
    # (IoU thresholds, recalls, classes, sizes, maxDets); -1 where there is no object
    precision = _with_nan(evaluation.eval["precision"])[..., -1]
    recall = _with_nan(evaluation.eval["recall"])[..., -1]
    at = IOU_THRESHOLDS.index(round(iou_threshold, 2))
    return CocoNumbers(
        stats_of(evaluation),
        precision[..., 0].mean(axis=(0, 1)),
        precision[0, ..., 0].mean(axis=0),
        precision[5, ..., 0].mean(axis=0),
        recall[..., 0].mean(axis=0),
        precision[..., 1:].mean(axis=(0, 1)),
        np.asarray(evaluation.params.rec_thrs),
        precision[at, :, :, 0].T,
    )


def proposal_recall(annotations: Annotations, proposals: Found) -> np.ndarray:
    """The average recall of proposals, whatever the class; NaN where there is no object.

    Args:
        annotations: of the split.
        proposals: their labels are not read.

    Returns:
        (3, 4) for `PROPOSALS` of an image, best first, by `SIZES` of the objects.
    """
    images = [
        {"id": i, "height": int(height), "width": int(width)}
        for i, (height, width) in enumerate(annotations.image_sizes, 1)
    ]
    truth = COCO.from_arrays(
        images,
        [{"id": 1, "name": "object"}],
        annotations.image_index + 1,
        np.ones(len(annotations.labels), np.int64),
        annotations.boxes_xywh,
        area=annotations.areas,
        iscrowd=annotations.crowd,
    )
    rows = np.column_stack(
        [proposals.image_index + 1.0, proposals.boxes_xywh, proposals.scores, 0 * proposals.scores]
    )
    rows[:, 6] = 1
    evaluation = COCOeval(truth, truth.load_res(rows), "bbox")
    evaluation.params.max_dets = list(PROPOSALS)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    recall = _with_nan(evaluation.eval["recall"])  # (IoU thresholds, 1, sizes, PROPOSALS)
    return recall[:, 0].mean(axis=0).T


def _with_nan(values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.where(values < 0, np.nan, values)
