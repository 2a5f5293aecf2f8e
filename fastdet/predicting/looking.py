# SPDX-License-Identifier: BSD-3-Clause
"""Detections as the options of views and batches say: plain, on tiles, with further views."""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from fastdet.predicting.augmented_views import AugmentedViews
from fastdet.predicting.detecting import detections_of, propose
from fastdet.predicting.options import ViewOptions
from fastdet.predicting.shrinking import auto_tile
from fastdet.predicting.tiles import Found, detect_on_tiles, in_batches
from fastdet.training.detector_module import DetectorModule


class Look:
    """Detections on images; several threads may call it at a time.

    Args:
        module: the detector, on its device. On a GPU one thread at a time runs it.
        options: the views.
        score_threshold: detections with a lower score are dropped, before any merging.
        batch_size: images of one size that the detector takes at a time.

    Raises:
        ValueError: tiles for a detector of masks.
    """

    def __init__(
        self,
        module: DetectorModule,
        options: ViewOptions,
        score_threshold: float,
        batch_size: int = 1,
    ) -> None:
        if options.tile is not None and module.model.learns_masks:
            raise ValueError(
                f"tile: expected a detector of boxes, got {type(module.model).__name__}: masks "
                "that tiles cut are not joined"
            )
        self.module = module
        self.options = options
        self.score_threshold = score_threshold
        self.batch_size = batch_size
        self.tile = auto_tile(module) if options.tile == "auto" else options.tile
        self._turn = threading.Lock() if module.device.type != "cpu" else nullcontext()
        self._views = AugmentedViews(self._with_model, module.model, options)

    def __call__(self, images: Sequence[Tensor]) -> list[Found]:
        """Detections of uint8 RGB images (3, H, W), in pixels of each, on the CPU, best first."""
        if self.tile is None:
            return in_batches(self._views, images, self.batch_size)
        return [
            detect_on_tiles(self._views, image, self.tile, self.options, self.batch_size)
            for image in images
        ]

    def propose(self, image: Tensor, number: int) -> Found:
        """What the first stage proposes on an image; see `fastdet.predicting.propose`."""
        with self._turn:
            return propose(self.module, image, number)

    def _with_model(self, model: Any, images: Sequence[Tensor]) -> list[Found]:
        with self._turn:
            return detections_of(model, images, self.score_threshold, self.module.device)
