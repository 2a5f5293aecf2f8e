# SPDX-License-Identifier: BSD-3-Clause
"""Inputs that several suites share, from fixed seeds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdet.models.anchors import cell_anchors, pyramid_anchors

TILES, TILE_SIDE, TILE_STEP = 20, 640, 512  # a row of tiles; pixels, which overlap by a fifth
TILED = 33_337  # boxes


def seeded(seed: int) -> torch.Generator:
    """A generator of the given seed."""
    return torch.Generator().manual_seed(seed)


def random_boxes(n: int, width: float, height: float, largest: float, seed: int = 0) -> Tensor:
    """(n, 4) xyxy with sides up to `largest`, at least 1 px."""
    generator = seeded(seed)
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([width, height])
    side = 1 + torch.rand(n, 2, generator=generator) * (largest - 1)
    return torch.cat([corner, corner + side], 1)


def scene(n: int, objects: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and scores (n,) as a detector gives them: many about each object.

    The closer to the object, the higher the score. Objects lie in 1216 x 800 pixels.
    """
    generator = seeded(seed)
    truth = random_boxes(objects, 1100, 700, 200, seed)
    truth = truth[torch.randint(objects, (n,), generator=generator)]  # (n, 4)
    sides = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    shift = 0.15 * torch.randn(n, 4, generator=generator)
    boxes = truth + shift * sides
    boxes = torch.cat([boxes.view(n, 2, 2).amin(1), boxes.view(n, 2, 2).amax(1)], 1)
    return boxes, (-4 * shift.abs().mean(1)).exp() * torch.rand(n, generator=generator)


def tiled(n: int) -> tuple[Tensor, Tensor]:
    """n boxes of 400 tiles, with scores: each tile that shows a part of an object finds it."""
    objects = random_boxes(n, TILES * TILE_STEP, TILES * TILE_STEP, 70)
    parts = []
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        low = ((objects[:, :2] / TILE_STEP).floor() - torch.tensor([x, y])) * TILE_STEP
        part = torch.cat([objects[:, :2].maximum(low), objects[:, 2:].minimum(low + TILE_SIDE)], 1)
        parts.append(part[((part[:, 2:] - part[:, :2]) >= 4).all(1)])
    boxes = torch.cat(parts)
    boxes = boxes[torch.randperm(len(boxes), generator=seeded(20))[:n]]
    boxes = boxes + torch.randn(n, 4, generator=seeded(21))
    return boxes, torch.rand(n, generator=seeded(22))


def gradients(forward: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Forward and backward: the result and its gradients."""
    upstream = _upstream(forward())

    def run() -> object:
        result = forward()
        return result, torch.autograd.grad(result, inputs, upstream)

    return run


def backward(forward: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Backward alone, again and again for one forward."""
    result = forward()
    upstream = _upstream(result)
    return lambda: torch.autograd.grad(result, inputs, upstream, retain_graph=True)


def _upstream(result: Tensor) -> Tensor:
    """The same gradient for every side, laid out as its result."""
    values = torch.randn(result.shape, generator=seeded(99), dtype=torch.float32)
    return torch.empty_like(result).copy_(values)


# Three sizes an octave, for each of RetinaNet's levels.
RETINANET_SIZES = [
    (s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512)
]


class Head(NamedTuple):
    """A head's outputs for the anchors of five levels, 3 to 7, of an image of 800 x 1216 pixels.

    Attributes:
        logits: for each level (B, A_l, classes).
        deltas: for each level (B, A_l, 4).
        anchors: for each level (A_l, 4).
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]

    def double(self) -> "Head":
        """In float64."""
        return Head(*([x.double() for x in part] for part in self))


def head(
    images: int, classes: int, first_stride: int, sizes: Sequence[Sequence[float]], small: bool
) -> Head:
    """Random outputs of the kind that a trained head has: one logit in a thousand is above -3.

    Args:
        images: B.
        classes: logits of an anchor.
        first_stride: pixels between the locations of the first level; it doubles with each level.
        sizes: of the anchors of each level.
        small: an image of 128 x 128 pixels.
    """
    generator = seeded(11)
    height, width = (128, 128) if small else (800, 1216)
    strides = [first_stride * 2**level for level in range(len(sizes))]
    maps = [torch.empty(1, 1, -(-height // s), -(-width // s)) for s in strides]
    anchors = [
        pyramid_anchors(torch.empty(1, 3, height, width), [level], (cells,))
        for level, cells in zip(maps, cell_anchors(sizes), strict=True)
    ]
    counts = [len(level) for level in anchors]
    return Head(
        [torch.randn(images, n, classes, generator=generator) - 6 for n in counts],
        [torch.randn(images, n, 4, generator=generator) * 0.2 for n in counts],
        anchors,
    )


def box_head(n: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, classes), deltas (n, classes, 4) and proposals (n, 4) of a second stage.

    A fifth of the proposals lies on an object, of one of three classes.
    """
    proposals, _ = scene(n, objects=max(1, n // 50))
    deltas = torch.randn(n, classes, 4, generator=seeded(12))
    logits = torch.randn(n, classes, generator=seeded(13))
    logits[:, 0] += 7
    on_something = torch.arange(0, n, 5)
    logits[on_something, 1 + on_something % 3] += 8
    return logits, deltas, proposals
