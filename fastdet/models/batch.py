# SPDX-License-Identifier: BSD-3-Clause
"""The input of a detector: padded images and their ground truth, all of fixed shape.

All shapes in a detector depend only on (B, H, W, G). Rows from an image's count on may have any
finite values: they change neither losses nor detections.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastdet.ops.detections import Detections
from fastdet.ops.tracing import is_eager


class Batch(NamedTuple):
    """Padded images and their ground truth.

    Attributes:
        images: (B, C, H, W) channels_last, normalised; padded with zeros at the right and below.
        sizes: (B, 2) int64, height and width of each image in `images`, without its padding.
        gt_boxes: (B, G, 4) xyxy in pixels of `images`; float64 if `images` are, else float32.
        gt_labels: (B, G) int64, 1 .. num_classes - 1.
        gt_counts: (B,) int64, number of real rows of gt_boxes, gt_labels and gt_masks.
        gt_masks: (B, G, H, W) bool, or None if the model has no mask head. A pixel takes one byte:
            16 rows for two images of 800 x 1344 take 34 MB.
        original_sizes: (B, 2) int64, height and width of each image before resizing; None if the
            images were not resized.
    """

    images: Tensor
    sizes: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_counts: Tensor
    gt_masks: Tensor | None = None
    original_sizes: Tensor | None = None


def image_of(batch: Batch, i: int) -> Batch:
    """The batch of image `i` alone, with its padding; views, no copies."""
    parts: list[Any] = [None if part is None else part[i : i + 1] for part in batch]
    return Batch(*parts)


def batch_shape(batch: Batch) -> tuple[int, int, int, int]:
    """(B, H, W, G): all shapes in a detector depend on these; each needs its own compiled graph."""
    images, _, height, width = batch.images.shape
    return images, height, width, batch.gt_boxes.shape[1]


def with_rows(batch: Batch) -> Batch:
    """The batch, with one row of padding if its ground truth has no rows (G = 0).

    No loss then needs a case of its own for it: gathering rows and maxima over them need one.
    """
    if batch.gt_boxes.shape[1]:
        return batch
    masks = batch.gt_masks
    return batch._replace(
        gt_boxes=F.pad(batch.gt_boxes, (0, 0, 0, 1)),
        gt_labels=F.pad(batch.gt_labels, (0, 1)),
        gt_masks=None if masks is None else F.pad(masks, (0, 0, 0, 0, 0, 1)),
    )


def rows_in_use(counts: Tensor, rows: int) -> int:
    """How many of the padded rows a head has to compute: at least 1, at most `rows`.

    In eager mode on the CPU this is the largest count, because reading it costs nothing. Elsewhere
    it is `rows`: the host would have to wait for a GPU, and a trace would be valid for one number
    only.
    """
    if is_eager(counts) and counts.device.type == "cpu":
        return min(rows, max(1, int(counts.max())))
    return rows


def index_of_some(real: Tensor) -> Tensor | None:
    """The indices of the True values of (N,) bool, at least one; None: compute all N rows.

    Rows of a batch are padded to those of its fullest image. As in `rows_in_use`, it costs nothing
    only in eager mode on the CPU to find which of them are real.
    """
    if not is_eager(real) or real.device.type != "cpu" or bool(real.all()):
        return None
    index = real.nonzero()[:, 0]
    return index if len(index) else index.new_zeros(1)


def restore(detections: Detections, batch: Batch) -> Detections:
    """Scales boxes from the pixels of `batch.images` to the pixels of the original images.

    Masks do not change, because they are relative to their boxes. Follows torchvision's
    resize_boxes.
    """
    if batch.original_sizes is None:
        return detections
    ratios = xyxy_ratios(batch.sizes, batch.original_sizes)[:, None]  # (B, 1, 4)
    return detections._replace(boxes=detections.boxes * ratios)


def xyxy_ratios(old: Tensor, new: Tensor) -> Tensor:
    """(B, 4) float32 factors that scale xyxy boxes from images of size `old` to size `new`."""
    return (new.float() / old.float())[:, [1, 0, 1, 0]]
