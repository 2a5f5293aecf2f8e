# SPDX-License-Identifier: BSD-3-Clause
"""The learning rate over a training, as a factor of its peak: a linear warm-up, then a schedule."""

import math
from collections.abc import Callable, Sequence

from fastdet.training.options import OptimizationOptions

WARMUP_FRACTION, LONGEST_WARMUP = 0.05, 1000  # of the steps; steps
DEFAULT_MILESTONES = (8 / 12, 11 / 12)  # of the epochs
LOWEST = 0.01  # the end of the cosine


def warmup_cosine(step: int, total_steps: int, warmup: int | None = None) -> float:
    """Factor of the peak learning rate: a linear warm-up, then a cosine down to 1 % of the peak.

    Args:
        step: optimiser steps done so far, from 0.
        total_steps: optimiser steps of the whole training.
        warmup: steps of the warm-up; None: see `default_warmup`.

    Returns:
        A factor in (0, 1]. Beyond `total_steps` it stays at its last value.
    """
    warmup = default_warmup(total_steps) if warmup is None else warmup
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_milestones(step: int, milestones: Sequence[int], gamma: float, warmup: int) -> float:
    """Factor of the peak learning rate: a linear warm-up, then times gamma after each milestone.

    Args:
        step: optimiser steps done so far, from 0.
        milestones: numbers of steps.
        gamma: the factor.
        warmup: steps of the warm-up.
    """
    if step < warmup:
        return (step + 1) / warmup
    return gamma ** sum(step >= milestone for milestone in milestones)


def default_warmup(total_steps: int) -> int:
    """5 % of the steps, from 1 to 1000."""
    return max(1, min(LONGEST_WARMUP, round(total_steps * WARMUP_FRACTION)))


def schedule(options: OptimizationOptions, total_steps: int, epochs: int) -> Callable[[int], float]:
    """Step -> factor of the peak learning rate, for `torch.optim.lr_scheduler.LambdaLR`.

    Args:
        options: schedule, milestones, gamma, warmup_steps, warmup_epochs.
        total_steps: optimiser steps of the whole training.
        epochs: of the whole training.
    """
    of_epoch = total_steps / epochs
    warmup = options.warmup_steps
    if options.warmup_epochs is not None:
        warmup = round(options.warmup_epochs * of_epoch)
    if warmup is None:
        warmup = default_warmup(total_steps)
    if options.schedule == "cosine":
        return lambda step: warmup_cosine(step, total_steps, warmup)
    milestones: list[int] = []
    if options.schedule == "step":
        ends = options.milestones or [share * epochs for share in DEFAULT_MILESTONES]
        milestones = [round(end * of_epoch) for end in ends]
    return lambda step: warmup_milestones(step, milestones, options.gamma, warmup)
