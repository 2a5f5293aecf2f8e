# SPDX-License-Identifier: BSD-3-Clause
"""The reduction of a loss: none, mean or sum."""

from typing import Any

import torch
from torch import Tensor


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """The losses themselves ("none"), their "mean" (0 for no losses) or their "sum"."""
    return loss if reduction == "none" else reduce_sum(loss.sum(), loss.numel(), reduction)


def reduce_sum(total: Tensor, count: int, reduction: str) -> Tensor:
    """The same from the sum of `count` losses."""
    if reduction == "sum":
        return total
    if reduction == "mean":
        divisor: Any = torch.sym_max(count, 1)  # traces with sizes that are symbols
        return total / divisor
    raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
