# SPDX-License-Identifier: BSD-3-Clause
"""What becomes of the losses of single elements."""

from typing import Any

import torch
from torch import Tensor


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """The losses themselves ("none"), their "mean" (0 for no losses) or their "sum"."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        count: Any = torch.sym_max(loss.numel(), 1)  # traces with sizes that are symbols
        return loss.sum() / count
    raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
