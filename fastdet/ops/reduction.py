# SPDX-License-Identifier: BSD-3-Clause
"""The reduction of a loss: none, mean or sum."""

from typing import Any

import torch
from torch import Tensor


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """The losses as they are ("none"), their "mean" (0 if there are none) or their "sum"."""
    return loss if reduction == "none" else reduce_sum(loss.sum(), loss.numel(), reduction)


def reduce_sum(total: Tensor, count: int, reduction: str) -> Tensor:
    """The "sum" or "mean" of `count` losses, given their sum."""
    if reduction == "sum":
        return total
    if reduction == "mean":
        divisor: Any = torch.sym_max(count, 1)  # also works with symbolic sizes
        return total / divisor
    raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
