# SPDX-License-Identifier: BSD-3-Clause
"""Samples a fixed number of positive and negative anchors of each image at random."""

import torch
from torch import Tensor

from . import library


def sample_matches(
    index: Tensor,
    num: int,
    positive_fraction: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples positives and negatives for a loss, uniformly and without replacement.

    Definition: torchvision's `BalancedPositiveNegativeSampler`, but outputs have a fixed shape and
    there is no host sync. Each anchor gets a random key from the generator; the anchors with the
    smallest keys are sampled. Memory beyond the results: the keys.

    Args:
        index: (B, A) int64 from `match_anchors`: >= 0 positive, -1 negative, below -1 ignored.
        num: number of samples of an image; fewer if the image has fewer candidates.
        positive_fraction: in [0, 1]; at most int(num * positive_fraction) samples are positive.
            The rest are negative.
        generator: on the device of index; None: torch's default generator.

    Returns:
        indices, (B, num) int64 into A: positives, then negatives, each in random order, then
        zeros as padding; and valid, (B, num) bool, False for the padding. The same on every device
        for the same keys.

    Raises:
        ValueError: positive_fraction outside [0, 1].
        RuntimeError: wrong shape or dtype; num below 0.
    """
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction: expected a number in [0, 1], got {positive_fraction}")
    # Not torch.rand: with a generator it cannot be traced with symbolic shapes.
    keys = torch.empty(index.shape, dtype=torch.float32, device=index.device)
    keys.uniform_(generator=generator)
    return torch.ops.fastdet.sample_matches(index, keys, num, positive_fraction)


@library.register_fake("fastdet::sample_matches")
def _(index: Tensor, keys: Tensor, num: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    shape = (index.size(0), num)
    return index.new_empty(shape), index.new_empty(shape, dtype=torch.bool)
