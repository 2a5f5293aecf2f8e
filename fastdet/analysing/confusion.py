# SPDX-License-Identifier: BSD-3-Clause
"""The confusion matrix of a detector: what its detections say of the objects, with background.

First the detections find the objects of their own class, by COCO's rules. Then the other
detections, best first, take the objects that are left, whatever their class. So the diagonal counts
the same matches as AP does, and an object that is found is never counted as confused. Detections in
a crowd of their class are ignored, as in AP.
"""

from typing import NamedTuple

import numpy as np

from fastdet.analysing.detections import Found
from fastdet.analysing.matching import Matches, Pairs, assign
from fastdet.data.annotations import Annotations


class Confusion(NamedTuple):
    """Objects by what they are found as.

    Attributes:
        matrix: (C + 1, C + 1) counts; a row for what it is, a column for what was detected. The
            last column has the objects without a detection, the last row the detections without an
            object.
        score_threshold, iou_threshold: from which on a detection counts, and finds an object.
    """

    matrix: np.ndarray
    score_threshold: float
    iou_threshold: float


def confusion_of(
    annotations: Annotations,
    found: Found,
    pairs: Pairs,
    matches: Matches,
    score_threshold: float,
    iou_threshold: float,
) -> Confusion:
    """The confusion matrix of the detections from a score on.

    Args:
        annotations: of the split.
        found: the detections.
        pairs: those with an IoU of at least iou_threshold, or more.
        matches: of all detections, at iou_threshold.
        score_threshold, iou_threshold: see `Confusion`.
    """
    background = len(annotations.names)
    counted = found.scores >= score_threshold
    own = counted & (matches.objects >= 0)
    left = counted & ~own & ~matches.ignored
    free = ~annotations.crowd
    free[matches.objects[own]] = False
    chosen = left[pairs.detections] & free[pairs.objects]
    others = assign(
        annotations, found, pairs.where(chosen), found.image_index, iou_threshold
    ).objects
    others[own] = matches.objects[own]
    shown = own | left
    truth = np.where(others >= 0, annotations.labels[others] - 1, background)[shown]
    said = found.labels[shown] - 1
    free[others[shown & (others >= 0)]] = False
    unfound = annotations.labels[free] - 1
    size = background + 1
    cells = np.concatenate([truth * size + said, unfound * size + background])
    matrix = np.bincount(cells, minlength=size * size).reshape(size, size)
    return Confusion(matrix, score_threshold, iou_threshold)
