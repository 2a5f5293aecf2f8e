# SPDX-License-Identifier: BSD-3-Clause
"""Boxes as D-FINE predicts them: how far each side of a first box moves, as a distribution.

A side moves outwards by one of `bins + 1` shares of the box's width or height; a box is what its
four distributions expect. The shares are dense around 0 and rare further away. Definition: that of
the authors' code of https://arxiv.org/abs/2410.13842, whose distances are our shares times the
steepness.
"""

import torch
from torch import Tensor

from fastdet.models.losses import widened
from fastdet.models.relative_boxes import centred


def bin_moves(bins: int, reach: float, steepness: float) -> Tensor:
    """The moves of the bins, ascending, as shares of the width or height of a box.

    Args:
        bins: their number less one, even.
        reach: the largest move; the two outermost bins move twice as far.
        steepness: how much denser the bins are in the middle than at the ends.

    Returns:
        (bins + 1,) float32, symmetric about 0.

    Raises:
        ValueError: bins is odd or below 4; reach or steepness is not above 0.
    """
    if bins < 4 or bins % 2:
        raise ValueError(f"bins: expected an even number from 4 on, got {bins}")
    for name, number in (("reach", reach), ("steepness", steepness)):
        if not number > 0:
            raise ValueError(f"{name}: expected a number above 0, got {number}")
    base = (reach * steepness + 1) ** (2 / (bins - 2))
    outwards = [(base**i - 1) / steepness for i in range(1, bins // 2)] + [2 * reach]
    return torch.tensor([*(-move for move in reversed(outwards)), 0.0, *outwards])


def moved_boxes(boxes: Tensor, logits: Tensor, moves: Tensor) -> Tensor:
    """Boxes whose sides have moved by what their distributions expect.

    Args:
        boxes: (B, Q, 4) cxcywh.
        logits: (B, Q, 4, bins + 1), of the left, top, right and bottom side.
        moves: (bins + 1,), see `bin_moves`.

    Returns:
        (B, Q, 4) cxcywh. A box whose sides would change places has no area.
    """
    shares = widened(logits).softmax(dim=-1)
    halves = 0.5 + (shares * moves.to(boxes.dtype)).sum(dim=-1)  # (B, Q, 4)
    centres, sides = boxes.chunk(2, dim=-1)
    low, high = centres - halves[..., :2] * sides, centres + halves[..., 2:] * sides
    moved = centred(torch.cat([low, high], dim=-1))
    return torch.cat([moved[..., :2], moved[..., 2:].clamp(min=0)], dim=-1)


def bin_targets(boxes: Tensor, gt_boxes: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """The two bins between which each side of a box must move to that of its ground truth.

    Args:
        boxes, gt_boxes: (..., 4) cxcywh.
        moves: (bins + 1,), see `bin_moves`.

    Returns:
        (..., 4) int64, the lower bin of each side; (..., 4), the share of the upper one. A side
        that is further away than the outermost bin has all of that bin.
    """
    centres, sides = boxes.chunk(2, dim=-1)
    gt_centres, gt_sides = gt_boxes.chunk(2, dim=-1)
    low, high = gt_centres - gt_sides / 2, gt_centres + gt_sides / 2
    wanted = torch.cat([centres - low, high - centres], dim=-1)
    wanted = wanted / torch.cat([sides, sides], dim=-1).clamp(min=1e-16) - 0.5
    moves = moves.to(wanted.dtype)
    wanted = wanted.clamp(moves[0], moves[-1])
    lower = (torch.bucketize(wanted, moves, right=True) - 1).clamp(max=len(moves) - 2)
    start, end = moves[lower], moves[lower + 1]
    return lower, (wanted - start) / (end - start)
