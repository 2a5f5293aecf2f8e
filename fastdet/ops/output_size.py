# SPDX-License-Identifier: BSD-3-Clause
"""The number of bins that a box is pooled or cropped to."""

from collections.abc import Sequence


def height_and_width(output_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number for both, or from a sequence of one or two numbers.

    Raises:
        ValueError: no number, more than two numbers, or a number below 1.
    """
    pair = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(pair) == 1:
        pair *= 2
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"output_size: expected one or two numbers above 0, got {output_size}")
    return pair
