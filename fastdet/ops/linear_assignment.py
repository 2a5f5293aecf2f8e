# SPDX-License-Identifier: BSD-3-Clause
"""Linear assignment: pairs rows with columns at the least total cost, for a batch of problems."""

import torch
from torch import Tensor

from . import library


def linear_assignment(
    cost: Tensor, row_counts: Tensor | None = None, col_counts: Tensor | None = None
) -> Tensor:
    """Gives each row at most one column, and each column at most one row, at the least total cost.

    As many pairs as possible are made. Without forbidden pairs these are min(rows, columns), as in
    `scipy.optimize.linear_sum_assignment`. A cost that is not finite (NaN or infinite) forbids its
    pair. Where forbidden pairs leave fewer pairs than that, SciPy raises an error; here the rows
    that go without a column have -1, and the total is the least of all assignments with that many
    pairs.

    Method: shortest augmenting paths after Jonker and Volgenant (Computing 38, 1987), in float64.
    Memory beyond inputs and outputs: one problem for each thread on the CPU, a float64 copy of the
    costs on CUDA. Costs have no gradient.

    Args:
        cost: (..., R, C); each leading index is a problem of its own.
        row_counts: (...) int64, the leading dimensions of cost; only the first row_counts[b] rows
            of problem b are read. None: all R.
        col_counts: the same for columns.

    Returns:
        (..., R) int64, the column of each row, or -1. If several assignments have the least total,
        it is one of them: the same on every device, for any number of threads.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return torch.ops.fastdet.linear_assignment(cost.detach(), row_counts, col_counts)


@library.register_fake("fastdet::linear_assignment")
def _(cost: Tensor, row_counts: Tensor | None, col_counts: Tensor | None) -> Tensor:
    return cost.new_empty(cost.shape[:-1], dtype=torch.int64)
