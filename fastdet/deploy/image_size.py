# SPDX-License-Identifier: BSD-3-Clause
"""The height and width that an exported detector takes."""

from fastdet.models import Border

Size = tuple[int, int]  # height and width, in pixels


def training_size(border: Border) -> Size:
    """The size that holds every image of a training, if it is not upright.

    That is fixed_size, or min_size (the last of several) by max_size; rounded up to size_divisor.
    """
    shortest = border.min_size if isinstance(border.min_size, int) else border.min_size[-1]
    size = border.fixed_size or (min(shortest, border.max_size), border.max_size)
    return next_size(size, border.size_divisor)


def next_size(image_size: Size, divisor: int) -> Size:
    """The smallest multiples of the divisor, above 0, that are not below the size."""
    height, width = (max(1, -(-side // divisor)) * divisor for side in image_size)
    return height, width


def check_size(image_size: Size, divisor: int) -> None:
    """Raises ValueError, with the next size that fits, for a size that does not divide."""
    fitting = next_size(image_size, divisor)
    if fitting != tuple(image_size):
        raise ValueError(
            f"image_size: expected multiples of {divisor} (size_divisor), got "
            f"{tuple(image_size)}; the next ones are {fitting[0]} {fitting[1]}"
        )
