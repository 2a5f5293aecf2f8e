# SPDX-License-Identifier: BSD-3-Clause
"""The outline of a mask as one polygon along the edges of its pixels.

Parts and holes are joined by lines that are walked there and back, which enclose nothing.
Invariant: filled by the even-odd rule, as COCO does, the polygon is the mask to the pixel.
Cost: a pass over the mask, and 1 us a corner.
"""

import numpy as np


def mask_outline(mask: np.ndarray) -> list[tuple[int, int]]:
    """The corners of a mask's outline; the first is the last, too.

    Args:
        mask: (H, W) bool.

    Returns:
        (x, y) of each corner; none of a mask without a pixel.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), np.int8)
    padded[1:-1, 1:-1] = mask
    # Along each line between two rows: 1 where the mask begins below it, -1 where it ends.
    steps = np.diff(padded, axis=0)  # (H + 1, W + 2)
    # Horizontal edges begin and end where that changes; where 1 meets -1, one ends and one begins.
    changes = np.abs(np.diff(np.stack([steps == 1, steps == -1]).astype(np.int8), axis=2))
    _, ys, xs = np.nonzero(changes)  # row by row, so that edge n has the corners 2n, 2n + 1
    corners = list(zip(xs.tolist(), ys.tolist(), strict=True))
    # In each column the corners, from the top, are the ends of vertical edges.
    order = np.lexsort((ys, xs))
    opposite = np.empty(len(order), np.int64)
    opposite[order[0::2]], opposite[order[1::2]] = order[1::2], order[0::2]
    ring: list[tuple[int, int]] = []
    for loop in _loops(opposite.tolist()):
        ring += [corners[corner] for corner in loop]
        if ring[-1] != ring[0]:
            ring.append(ring[0])
    return ring


def _loops(opposite: list[int]) -> list[list[int]]:
    """The closed paths that go by turns along a horizontal and a vertical edge.

    Args:
        opposite: the corner at the other end of each corner's vertical edge; along the horizontal
            one it is the corner that differs in the last bit.
    """
    seen = [False] * len(opposite)
    loops = []
    for start in range(len(opposite)):
        loop, corner = [], start
        while not seen[corner]:
            seen[corner] = seen[corner ^ 1] = True
            loop += [corner, corner ^ 1]
            corner = opposite[corner ^ 1]
        if loop:
            loops.append([*loop, start])
    return loops
