# SPDX-License-Identifier: BSD-3-Clause
"""What a detector computes on: padded images and their ground truth, all of fixed shape.

Every shape in a detector depends on (B, H, W, G) alone. Rows beyond a count may hold anything
finite: no loss reads them and no detection comes from them.
"""

from typing import NamedTuple

from torch import Tensor

from fastdet.ops.detections import Detections
from fastdet.ops.tracing import is_eager


class Batch(NamedTuple):
    """Padded images and their ground truth.

    Attributes:
        images: (B, C, H, W) channels_last, normalised, zero to the right of and below each image.
        sizes: (B, 2) int64, height and width of each image in `images`, without its padding.
        gt_boxes: (B, G, 4) xyxy in pixels of `images`, float32, or float64 if these are.
        gt_labels: (B, G) int64, 1 .. num_classes - 1.
        gt_counts: (B,) int64, how many rows of gt_boxes, gt_labels and gt_masks are real.
        gt_masks: (B, G, H, W) bool, or None if the model learns no masks. A pixel takes a byte:
            16 rows for two images of 800 x 1344 take 34 MB.
        original_sizes: (B, 2) int64, height and width of each image before it was resized; None if
            it was not.
    """

    images: Tensor
    sizes: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_counts: Tensor
    gt_masks: Tensor | None = None
    original_sizes: Tensor | None = None


def batch_shape(batch: Batch) -> tuple[int, int, int, int]:
    """(B, H, W, G): all that the shapes in a detector depend on, and what it is compiled for."""
    images, _, height, width = batch.images.shape
    return images, height, width, batch.gt_boxes.shape[1]


def rows_in_use(counts: Tensor, rows: int) -> int:
    """How many of the padded rows a head has to compute: at least 1, at most `rows`.

    Reading the largest count is free in eager mode on the CPU only. Everywhere else the shape must
    stay fixed: a GPU would wait for it, and a trace would be valid for this number only.
    """
    if is_eager(counts) and counts.device.type == "cpu":
        return min(rows, max(1, int(counts.max())))
    return rows


def restore(detections: Detections, batch: Batch) -> Detections:
    """Moves detections from the pixels of `batch.images` to those of the original images.

    Masks stay as they are: they are relative to their boxes. Follows torchvision's resize_boxes.
    """
    if batch.original_sizes is None:
        return detections
    ratios = xyxy_ratios(batch.sizes, batch.original_sizes)[:, None]  # (B, 1, 4)
    return detections._replace(boxes=detections.boxes * ratios)


def xyxy_ratios(old: Tensor, new: Tensor) -> Tensor:
    """(B, 4) float32 factors that carry xyxy boxes from images of size `old` to size `new`."""
    return (new.float() / old.float())[:, [1, 0, 1, 0]]
