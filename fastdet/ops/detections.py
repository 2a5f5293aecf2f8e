# SPDX-License-Identifier: BSD-3-Clause
"""The detections of a batch, with a fixed number of rows: the result of every detector."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """What a suppression makes detections of: a box with a score for each class.

    Attributes:
        boxes: (B, A, 4) xyxy in pixels, within the images.
        scores: (B, A, C) in [0, 1], 0 being the background.
    """

    boxes: Tensor
    scores: Tensor


class Detections(NamedTuple):
    """Detections of a batch, highest score first. Rows from an image's count on are zero.

    The first four fields are the results of `rpn_proposals`, `roi_detections` and
    `retinanet_detections`, in their order.

    Attributes:
        boxes: (B, D, 4) xyxy in pixels.
        scores: (B, D) in [0, 1].
        labels: (B, D) int64.
        counts: (B,) int64.
        masks: (B, D, M, M) in [0, 1], the probability that each part of the box belongs to the
            object; None if the model has no mask head.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    masks: Tensor | None = None

    def to_list(self) -> list[dict[str, Tensor]]:
        """One dict for each image: boxes (K, 4), labels (K,), scores (K,), masks (K, M, M)."""
        rows = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        if self.masks is not None:
            rows["masks"] = self.masks
        return [
            {name: values[i, :count] for name, values in rows.items()}
            for i, count in enumerate(self.counts.tolist())
        ]


def joined(found: Sequence[Detections]) -> Detections:
    """The detections of several batches as those of one, with as many rows as the longest has."""
    rows = max(each.boxes.shape[1] for each in found)

    def joined_rows(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([_with_rows(part, rows) for part in parts])

    masks = [each.masks for each in found if each.masks is not None]
    return Detections(
        joined_rows([each.boxes for each in found]),
        joined_rows([each.scores for each in found]),
        joined_rows([each.labels for each in found]),
        torch.cat([each.counts for each in found]),
        joined_rows(masks) if masks else None,
    )


def _with_rows(values: Tensor, rows: int) -> Tensor:
    """(B, D, ...) -> (B, rows, ...), with zeros below."""
    if values.shape[1] == rows:
        return values
    padded = values.new_zeros(len(values), rows, *values.shape[2:])
    padded[:, : values.shape[1]] = values
    return padded
