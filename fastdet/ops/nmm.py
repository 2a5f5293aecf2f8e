# SPDX-License-Identifier: BSD-3-Clause
"""Non-maximum merging (NMM): a box joins the best box that it overlaps, and is not dropped."""

import torch
from torch import Tensor

from . import library

METRICS = ("iou", "ios")


def nmm(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    threshold: float = 0.5,
    metric: str = "iou",
    transitive: bool = False,
) -> tuple[Tensor, Tensor]:
    """Merges overlapping boxes, as after a detector has run on the tiles of a large image.

    Boxes are visited by falling score. A box joins the first visited box that it overlaps by at
    least the threshold, its target. Without a target it is kept. The rules differ in the targets:

    - greedy: a target is a kept box. The groups are those of SAHI's GREEDYNMM.
    - transitive: a target is any visited box, and a box joins the group of its target. The groups
      are those of SAHI's NMM.

    Two differences from SAHI 0.12: of boxes with equal scores the first in the input comes first,
    where SAHI compares coordinates; and the merged box encloses all members, where SAHI leaves out
    a member that no longer overlaps the enlarged box by the threshold. The score and the label of a
    group are those of its kept box, as in SAHI.

    A box with a NaN score or a coordinate that is not finite is dropped; a box without area, or
    whose area overflows, merges with none. Half types are compared in float32. There is no matrix
    of overlaps: memory O(N). There is no gradient.

    Args:
        boxes: (N, 4) xyxy in pixels.
        scores: (N,), on the same device.
        labels: (N,) int64; only boxes of the same label are merged. None: all boxes.
        threshold: in (0, 1], rounded to the type in which boxes are compared.
        metric: of the overlap; "iou": intersection over union; "ios": over the smaller box.
        transitive: the second rule instead of the first.

    Returns:
        index, (N,) int64: the row of the kept box that box i is merged into, i if it is kept, -1 if
        it is dropped; and merged, (N, 4) in the dtype of boxes: in a kept row the smallest box that
        encloses its group, in other rows the box itself. Shapes do not depend on values; there is
        no host sync. The same on every device.

    Raises:
        ValueError: threshold outside (0, 1]; unknown metric.
        RuntimeError: wrong shape, dtype or device.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number in (0, 1], got {threshold}")
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {METRICS}, got {metric!r}")
    return torch.ops.fastdet.nmm(boxes, scores, labels, threshold, metric, transitive)


@library.register_fake("fastdet::nmm")
def _(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    threshold: float,
    metric: str,
    transitive: bool,
) -> tuple[Tensor, Tensor]:
    index = boxes.new_empty((boxes.size(0),), dtype=torch.int64)
    return index, boxes.new_empty(boxes.shape)
