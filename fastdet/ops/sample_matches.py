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
    there is no host sync. The generator gives each image a random number. An anchor's key is a
    hash of the number and of its index; the anchors with the smallest keys are sampled.

    Args:
        index: (B, A) int64 from `match_anchors`: >= 0 positive, -1 negative, below -1 ignored.
        num: number of samples of an image; fewer if the image has fewer candidates.
        positive_fraction: in [0, 1]; at most int(num * positive_fraction) samples are positive.
            The rest are negative.
        generator: on the device of index; None: torch's default generator.

    Returns:
        indices, (B, num) int64 into A: positives, then negatives, each in random order, then
        zeros as padding; and valid, (B, num) bool, False for the padding. The same on every device
        for the same numbers.

    Raises:
        ValueError: positive_fraction outside [0, 1].
        RuntimeError: wrong shape or dtype; num below 0.
    """
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction: expected a number in [0, 1], got {positive_fraction}")
    # Not torch.randint: with a generator it cannot be traced with symbolic shapes. A seed is the
    # bits of a number.
    seeds = torch.empty(index.shape[:1], dtype=torch.float64, device=index.device)
    seeds.uniform_(generator=generator)
    return torch.ops.fastdet.sample_matches(index, seeds, num, positive_fraction)


@library.register_fake("fastdet::sample_matches")
def _(index: Tensor, seeds: Tensor, num: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    shape = (index.size(0), num)
    return index.new_empty(shape), index.new_empty(shape, dtype=torch.bool)
