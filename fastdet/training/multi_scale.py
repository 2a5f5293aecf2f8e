# SPDX-License-Identifier: BSD-3-Clause
"""Multi-scale training: the size of a batch is a function of (seed, epoch, batch) alone.

It draws from no other random numbers, so that a training without it is the same as before.
"""

from dataclasses import replace

import torch

from fastdet.models.border import Border


def batch_border(
    border: Border, scales: tuple[int, int], seed: int, epoch: int, batch: int
) -> Border:
    """The border with the min_size of one batch.

    Args:
        border: the model's; its max_size stays the limit of the longer side.
        scales: smallest and largest min_size. All sizes from the smallest on in steps of
            size_divisor are equally likely.
        seed: of the training.
        epoch, batch: counted from 0.

    Raises:
        ValueError: a border of one fixed size, for which min_size does nothing.
    """
    if border.fixed_size is not None:
        raise ValueError(f"multi_scale: the model has the fixed size {border.fixed_size}")
    sizes = range(scales[0], scales[1] + 1, border.size_divisor)
    generator = torch.Generator().manual_seed(hash((seed, epoch, batch, 1)))  # no item's seed
    drawn = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    return replace(border, min_size=drawn)
