# SPDX-License-Identifier: BSD-3-Clause
"""What the queries of a DETR detect: the best of them, without any suppression.

The definitions are those of transformers' `post_process_object_detection`, but boxes are clipped to
their images and detections are sorted, highest score first.
"""

import torch
from torch import Tensor

from fastdet.models.dense_heads import best_pairs, clipped
from fastdet.models.losses import widened
from fastdet.models.relative_boxes import absolute_boxes
from fastdet.ops.detections import Detections
from fastdet.ops.padded_rows import row_mask, take_rows


@torch.no_grad()
def detections_of_softmax(
    logits: Tensor,
    boxes: Tensor,
    sizes: Tensor,
    *,
    score_thresh: float,
    detections_per_img: int,
) -> Detections:
    """DETR's: a query detects its most probable class, other than background.

    Args:
        logits: (B, Q, C); column 0 is background.
        boxes: (B, Q, 4) cxcywh in fractions of `sizes`.
        sizes: (B, 2), height and width of each image.
        score_thresh: a detection's score is above this.
        detections_per_img: maximum number of detections of an image, at most Q.
    """
    scores, labels = widened(logits).softmax(dim=-1)[..., 1:].max(dim=-1)
    scores, query = scores.topk(min(detections_per_img, scores.shape[1]), dim=1)
    labels = labels.gather(1, query) + 1
    return _detections(scores, query, labels, boxes, sizes, score_thresh)


@torch.no_grad()
def detections_of_sigmoid(
    logits: Tensor,
    boxes: Tensor,
    sizes: Tensor,
    *,
    score_thresh: float,
    detections_per_img: int,
) -> Detections:
    """Deformable DETR's: the best pairs of query and class; a query may detect several classes.

    Args:
        logits: (B, Q, C - 1); the first column is class 1, there is none for background.
        boxes: (B, Q, 4) cxcywh in fractions of `sizes`.
        sizes: (B, 2), height and width of each image.
        score_thresh: a detection's score is above this.
        detections_per_img: maximum number of detections of an image, at most Q * (C - 1).
    """
    scores, query, labels = best_pairs(widened(logits).sigmoid(), detections_per_img)
    return _detections(scores, query, labels + 1, boxes, sizes, score_thresh)


def _detections(
    scores: Tensor, query: Tensor, labels: Tensor, boxes: Tensor, sizes: Tensor, threshold: float
) -> Detections:
    """From scores (B, D), highest first, and the query and the label of each."""
    counts = (scores > threshold).sum(dim=1)
    real = row_mask(counts, scores.shape[1])
    found = clipped(take_rows(absolute_boxes(widened(boxes), sizes), query), sizes)
    return Detections(
        found.where(real[..., None], 0.0),
        scores.where(real, 0.0),
        labels.where(real, 0),
        counts,
    )
