# SPDX-License-Identifier: BSD-3-Clause
"""The activations that a convolution computes together with its sums, by oneDNN's names."""

import math
from typing import NamedTuple


class Limits(NamedTuple):
    """An activation: numbers outside of the limits become the nearest limit."""

    least: float
    most: float


Activation = str | Limits


def unary_of(activation: Activation) -> tuple[str, list[float]]:
    """oneDNN's name of an activation, and its numbers."""
    if isinstance(activation, Limits):
        return "hardtanh", list(activation)
    return activation, []


def scaled_relu(scale: float, offset: float) -> Limits:
    """What makes `scale * relu(x) + offset` of `scale * x + offset`."""
    return Limits(offset, math.inf) if scale >= 0 else Limits(-math.inf, offset)
