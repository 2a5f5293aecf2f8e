# SPDX-License-Identifier: BSD-3-Clause
"""Mask R-CNN's masks: inputs of training and inference, and how other libraries process them.

torchvision's `project_masks_on_boxes` and `maskrcnn_loss` make the masks floating and pool them;
its `paste_masks_in_image` stretches one mask after the other; pycocotools encodes in the host's
memory.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import (
    maskrcnn_loss,
    paste_masks_in_image,
    project_masks_on_boxes,
)

from benchmarks.workloads import random_boxes, seeded

HEIGHT, WIDTH, BINS, CLASSES = 800, 1216, 28, 91
GTS = 20  # an image


class MaskTargets(NamedTuple):
    """Two images, and boxes near their objects, every other one of which matches nothing.

    Attributes:
        masks: (2, GTS, HEIGHT, WIDTH) bool.
        boxes: (2, n, 4).
        match: (2, n), -1 in odd rows.
        labels: (2, n).
        gt_labels: (2, GTS).
    """

    masks: Tensor
    boxes: Tensor
    match: Tensor
    labels: Tensor
    gt_labels: Tensor


def mask_targets(n: int) -> MaskTargets:
    """With n boxes an image."""
    gt_boxes = random_boxes(2 * GTS, 1000, 600, 340).view(2, GTS, 4)
    gt_of = torch.randint(GTS, (2, n), generator=seeded(1))
    boxes = gt_boxes.gather(1, gt_of[..., None].expand(-1, -1, 4))
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    gt_labels = torch.randint(1, CLASSES, (2, GTS), generator=seeded(3))
    return MaskTargets(
        torch.stack([ellipses(boxes) for boxes in gt_boxes]),
        boxes + 0.1 * sides * torch.randn(2, n, 4, generator=seeded(2)),
        torch.where(torch.arange(n) % 2 == 0, gt_of, -1),
        gt_labels.gather(1, gt_of),
        gt_labels,
    )


def matched(rows: Tensor) -> Tensor:
    """Of (2, n, ...) the rows that match."""
    return rows[:, ::2]


def ellipses(boxes: Tensor) -> Tensor:
    """(G, HEIGHT, WIDTH) bool: the ellipse in each box."""
    center, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    y, x = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)
    shape = (-1, 1, 1)
    across = (x - center[:, 0].view(shape)) / radius[:, 0].view(shape)
    down = (y - center[:, 1].view(shape)) / radius[:, 1].view(shape)
    return across**2 + down**2 < 1


def mask_outputs(n: int) -> tuple[Tensor, Tensor]:
    """Probabilities (n, BINS, BINS) and boxes (n, 4) of an image's detections."""
    grid = (torch.arange(BINS) + 0.5) / BINS - 0.5
    distance = (grid[:, None] ** 2 + grid**2).sqrt()
    radius = 0.3 + 0.3 * torch.rand(n, 1, 1, generator=seeded(5))
    return torch.sigmoid((radius - distance) * 20), random_boxes(n, 1000, 600, 340)


# ---- the others' ways ---------------------------------------------------------------------------


def torchvision_crops(masks: Tensor, boxes: Tensor, match: Tensor) -> Tensor:
    """(rows that match, BINS, BINS) in the boxes' dtype."""
    images = zip(masks, matched(boxes), matched(match), strict=True)
    return torch.cat([project_masks_on_boxes(*image, BINS) for image in images])


def torchvision_loss(
    logits: Tensor, masks: Tensor, boxes: Tensor, match: Tensor, gt_labels: Tensor
) -> Tensor:
    """From the logits of the rows that match: its mask head sees no others."""
    rows = list(matched(boxes)), list(masks), list(gt_labels), list(matched(match))
    return maskrcnn_loss(logits, *rows)


def torchvision_pasted(masks: Tensor, boxes: Tensor) -> Tensor:
    """(n, HEIGHT, WIDTH) bool."""
    return paste_masks_in_image(masks[:, None], boxes, (HEIGHT, WIDTH))[:, 0] > 0.5


def pycocotools_rles(masks: Tensor) -> list[Any]:
    """The RLE of each of (n, H, W) bool."""
    # Imported here, so that a machine without it can measure the rest.
    from pycocotools import mask as coco_mask

    return [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.byte().cpu().numpy()]
