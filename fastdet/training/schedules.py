# SPDX-License-Identifier: BSD-3-Clause
"""The learning rate over a training, as a factor of its peak."""

import math


def warmup_cosine(step: int, total_steps: int, warmup_fraction: float = 0.05) -> float:
    """Factor of the peak learning rate: a linear warm-up, then a cosine down to 1 % of the peak.

    Args:
        step: optimiser steps done so far, from 0.
        total_steps: optimiser steps of the whole training.
        warmup_fraction: the share of them that the warm-up takes; at most 1000 steps.

    Returns:
        A factor in (0, 1]. Beyond `total_steps` it stays at its last value.
    """
    warmup = max(1, min(1000, round(total_steps * warmup_fraction)))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
