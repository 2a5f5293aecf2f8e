# SPDX-License-Identifier: BSD-3-Clause
"""Rows of padded batches: which rows are real, and how to gather rows."""

import torch
from torch import Tensor


def row_mask(counts: Tensor, rows: int) -> Tensor:
    """(B, rows) bool: True if the row's index is below its image's count."""
    return torch.arange(rows, device=counts.device) < counts[:, None]


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, N) of values (B, M) or (B, M, C); negative indices take row 0."""
    index = index.clamp(min=0)
    if values.dim() == 3:
        index = index[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index)
