# SPDX-License-Identifier: BSD-3-Clause
"""A balanced random subset of the matches of each image, of a fixed size."""

import torch
from torch import Tensor

from . import library


def sample_matches(
    index: Tensor,
    num: int,
    positive_fraction: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws positives and negatives, uniformly and without replacement, as the loss wants them.

    Definition: torchvision's `BalancedPositiveNegativeSampler`, with outputs of a fixed shape and
    no host sync. Each anchor draws a key from the generator, and the smallest keys are taken.
    Beyond the results, memory for the keys.

    Args:
        index: (B, A) int64 as from `match_anchors`: >= 0 positive, -1 negative, less: never drawn.
        num: how many are drawn in an image, where there are so many.
        positive_fraction: in [0, 1]; at most int(num * positive_fraction) positives are drawn, and
            negatives take the places that are left.
        generator: of the device of index; None: torch's default one.

    Returns:
        indices, (B, num) int64 into A: positives, then negatives, each in random order, then
        zeros; and valid, (B, num) bool, False on those zeros. The same on every device for the
        same keys.

    Raises:
        ValueError: positive_fraction outside [0, 1].
        RuntimeError: wrong shape or dtype; num below 0.
    """
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction: expected a number in [0, 1], got {positive_fraction}")
    # Not torch.rand: its overload with a generator does not trace with symbolic shapes.
    keys = torch.empty(index.shape, dtype=torch.float32, device=index.device)
    keys.uniform_(generator=generator)
    return torch.ops.fastdet.sample_matches(index, keys, num, positive_fraction)


@library.register_fake("fastdet::sample_matches")
def _(index: Tensor, keys: Tensor, num: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    shape = (index.size(0), num)
    return index.new_empty(shape), index.new_empty(shape, dtype=torch.bool)
