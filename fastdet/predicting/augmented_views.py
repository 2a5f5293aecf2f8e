# SPDX-License-Identifier: BSD-3-Clause
"""Test-time augmentation (TTA): detections of several views of an image, joined by NMS.

As in detectron2 and Ultralytics: NMS by class over the detections of all views. A score keeps its
meaning, and a mask stays that of the best view; a fusion of boxes would change both.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdet.models.border import Border
from fastdet.ops import batched_nms
from fastdet.predicting.options import ViewOptions
from fastdet.predicting.tiles import Found

IOU_THRESHOLD = 0.5  # of a detector that does not say its own
DetectWith = Callable[[Any, Sequence[Tensor]], list[Found]]


class AugmentedViews:
    """Each scale, and with flip the mirror image at each scale.

    Args:
        detect: finds objects on images with a model.
        model: the detector. At another scale the same weights run with another border.
        options: the scales, and whether to flip.
    """

    def __init__(self, detect: DetectWith, model: Any, options: ViewOptions) -> None:
        self._detect = detect
        self._models = [scaled(model, scale) for scale in options.scales]
        self._flips = (False, True) if options.flip else (False,)
        self._iou_threshold = own_iou_threshold(model)

    def __call__(self, images: Sequence[Tensor]) -> list[Found]:
        """Detections of each image (3, H, W), in its pixels, best first."""
        views = []
        for model in self._models:
            for flip in self._flips:
                seen = [image.flip(-1) for image in images] if flip else images
                found = self._detect(model, seen)
                if flip:
                    found = [
                        flipped(one, image.shape[-1])
                        for one, image in zip(found, images, strict=True)
                    ]
                views.append(found)
        if len(views) == 1:
            return views[0]
        return [self._joined(of_image) for of_image in zip(*views, strict=True)]

    def _joined(self, views: Sequence[Found]) -> Found:
        every = {name: torch.cat([found[name] for found in views]) for name in views[0]}
        kept = batched_nms(every["boxes"], every["scores"], every["labels"], self._iou_threshold)
        return {name: value[kept] for name, value in every.items()}


def own_iou_threshold(model: Any) -> float:
    """That of the detector's NMS: of two stages the last one's, after the proposals'."""
    suppression = model.suppression()
    if suppression is not None:
        return suppression["iou_threshold"]
    parts = [part.nms_thresh for part in model.modules() if hasattr(part, "nms_thresh")]
    return parts[-1] if parts else IOU_THRESHOLD


def scaled(model: Any, scale: float) -> Any:
    """The same detector, with the same parameters, for images that it resizes to another scale."""
    if scale == 1:
        return model
    other = copy.copy(model)
    other.border = scaled_border(model.border, scale)
    return other


def scaled_border(border: Border, scale: float) -> Border:
    """A border that makes images larger or smaller by a factor."""

    def times(side: int) -> int:
        return max(1, round(side * scale))

    smallest, fixed = border.min_size, border.fixed_size
    return replace(
        border,
        min_size=times(smallest) if isinstance(smallest, int) else [times(s) for s in smallest],
        max_size=times(border.max_size),
        fixed_size=None if fixed is None else (times(fixed[0]), times(fixed[1])),
    )


def flipped(found: Found, width: int) -> Found:
    """Detections on the mirror image of an image of this width."""
    x1, y1, x2, y2 = found["boxes"].unbind(1)
    found = {**found, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    if "masks" in found:
        found["masks"] = found["masks"].flip(-1)
    return found
