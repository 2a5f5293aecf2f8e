# SPDX-License-Identifier: BSD-3-Clause
"""The groups of boxes that `fastdet.numpy.nmm` finds, as lists."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]  # x1, y1, x2, y2, score, and perhaps the class
Ints = NDArray[np.int64]


def listed(group: Ints, by_group: Ints, order: Ints) -> list[list[int]]:
    """Each group as a list of indices of the input, the kept box first.

    Args:
        group: (N,) the rank of the kept box that each box joins; boxes are ranked as visited.
        by_group: (N,) ranks, sorted by group, in which the kept box is the first of its group.
        order: (N,) the index of each rank.
    """
    indices = order[by_group].tolist()
    starts = np.flatnonzero(group[by_group] == by_group).tolist()
    return [indices[start:end] for start, end in itertools.pairwise([*starts, len(indices)])]
