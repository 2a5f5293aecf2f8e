# SPDX-License-Identifier: BSD-3-Clause
"""Counts the parameters, FLOPs and anchors of a detector at one image size.

The model runs once on fake tensors, which have shapes but no values. So this needs no memory for
feature maps and takes less than a second. The model's weights and mode do not change.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastdet.models.backbones import feature_maps
from fastdet.models.batch import Batch
from fastdet.models.detector import Detector
from fastdet.ops.detections import Detections


@dataclass(frozen=True)
class Part:
    """A module of the detector.

    Attributes:
        name: as in the state dict.
        parameters: number of parameters.
        trainable: number of parameters that have requires_grad.
        flops: of its convolutions and matrix products; a multiply-add counts as two.
    """

    name: str
    parameters: int
    trainable: int
    flops: int


@dataclass(frozen=True)
class Level:
    """A level of the pyramid.

    Attributes:
        stride: pixels from one location to the next, vertically and horizontally.
        grid: number of locations, vertically and horizontally.
        sizes: width and height in pixels of the anchors of a location, or of its square.
    """

    stride: tuple[int, int]
    grid: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]

    @property
    def anchors(self) -> int:
        """Number of anchors of the level: anchors of a location times number of locations."""
        return self.grid[0] * self.grid[1] * len(self.sizes)


@dataclass(frozen=True)
class Description:
    """The result of `describe`. Printed, it is a table of parts, and one of levels with anchors."""

    model: str
    image_size: tuple[int, int]
    parts: tuple[Part, ...]
    levels: tuple[Level, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        """The number of trainable parameters of all parts."""
        return sum(part.trainable for part in self.parts)

    @property
    def flops(self) -> int:
        """The FLOPs of all parts, for one image."""
        return sum(part.flops for part in self.parts)

    @property
    def anchors(self) -> int:
        """The number of anchors of all levels."""
        return sum(level.anchors for level in self.levels)

    def __str__(self) -> str:
        total = Part("total", self.parameters, self.trainable, self.flops)
        parts = [
            (part.name, f"{part.parameters:,}", f"{part.trainable:,}", f"{part.flops / 1e9:,.2f}")
            for part in (*self.parts, total)
        ]
        levels = [
            (
                _by(level.stride) if level.stride[0] != level.stride[1] else str(level.stride[0]),
                _by(level.grid),
                f"{level.anchors:,}",
                " ".join(_by(size) for size in level.sizes),
            )
            for level in self.levels
        ]
        height, width = self.image_size
        lines = [
            f"{self.model}, one image of {height} x {width} (height x width)",
            "",
            *_table(("part", "parameters", "trainable", "GFLOPs"), parts, left=(0,)),
        ]
        if levels:
            header = ("stride", "locations", "anchors", "width x height of each")
            lines += ["", *_table(header, levels, left=(3,)), f"{self.anchors:,} anchors"]
        return "\n".join(lines)


def describe(model: Detector, image_size: tuple[int, int] = (800, 1216)) -> Description:
    """Counts the parameters and FLOPs of a detector's parts, and the anchors of its levels.

    Args:
        model: any detector, on any device, in any mode.
        image_size: height and width of the padded image, rounded up to a multiple of the model's
            size_divisor.

    Returns:
        A Description; `print` it. The FLOPs are for detection in one image, with the maximum number
        of proposals. They count convolutions and matrix products; a multiply-add counts as two.
        Norms, activations and fastdet's own operators (RoIAlign, NMS, ...) are not counted.

    Raises:
        ValueError: a height or width below 1, or a quantised detector.
    """
    if hasattr(model, "calibration"):  # of fastdet.engine.quantize
        raise ValueError(
            f"describe: expected a detector in float32, got a quantised {type(model).__name__}"
        )
    if min(image_size) < 1:
        raise ValueError(f"image_size: expected height and width above 0, got {image_size}")
    divisor = model.border.size_divisor
    height, width = (-(-side // divisor) * divisor for side in image_size)
    counts, grids = _run(model, (height, width))
    levels = [
        Level(
            stride=(height // grid[0], width // grid[1]),
            grid=grid,
            sizes=tuple((int(x2 - x1), int(y2 - y1)) for x1, y1, x2, y2 in level),
        )
        for grid, level in zip(grids, model.anchor_cells() or (), strict=True)
    ]
    parts = [
        Part(
            name=name,
            parameters=sum(p.numel() for p in part.parameters()),
            trainable=sum(p.numel() for p in part.parameters() if p.requires_grad),
            flops=_flops(counts, f"Detect.model.{name}", part),
        )
        for name, part in _parts(model)
    ]
    return Description(type(model).__name__, (height, width), tuple(parts), tuple(levels))


class Detect(nn.Module):
    """`detect` as a forward, so that the FLOP counter knows each module's name in the model."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Detections:
        """See `Detector.detect`."""
        return self.model.detect(batch)


def _run(
    model: Detector, image_size: tuple[int, int]
) -> tuple[dict[str, dict[Any, int]], list[tuple[int, int]]]:
    """FLOPs by module name and operator, and the grid of each level that has anchors."""
    tensors = (*model.parameters(), *model.buffers())
    # A copy that shares the weights, but has its own mode and hooks.
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
    grids: list[tuple[int, int]] = []
    if model.anchor_cells() is not None:
        model.get_submodule("backbone").register_forward_hook(
            lambda _module, _inputs, output: grids.extend(
                (level.shape[2], level.shape[3]) for level in feature_maps(output)
            )
        )
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
        images = next(model.parameters()).new_zeros((1, len(model.border.image_mean), *image_size))
        sizes = torch.tensor([image_size], device=images.device)
        boxes = images.new_zeros((1, 8, 4), dtype=torch.float32)
        labels = boxes.new_zeros((1, 8), dtype=torch.int64)
        images = images.contiguous(memory_format=torch.channels_last)
        Detect(model)(Batch(images, sizes, boxes, labels, labels.sum(dim=1)))
    return counter.get_flop_counts(), grids


def _parts(model: Detector) -> Iterator[tuple[str, nn.Module]]:
    """The children of the model's children, by name.

    A child is not divided if it is a layer, a Sequential or a backbone without a pyramid.
    """
    for name, child in model.named_children():
        layer = next(child.parameters(recurse=False), None) is not None
        whole_backbone = name == "backbone" and not hasattr(child, "fpn")
        if layer or isinstance(child, nn.Sequential) or whole_backbone:
            yield name, child
        else:
            yield from ((f"{name}.{inner}", part) for inner, part in child.named_children())


def _flops(counts: dict[str, dict[Any, int]], name: str, module: nn.Module) -> int:
    """FLOPs of a module; of its children if only these are called, not the module itself."""
    if name in counts:
        return sum(counts[name].values())
    return sum(_flops(counts, f"{name}.{inner}", m) for inner, m in module.named_children())


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"


def _table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], left: tuple[int, ...]
) -> Iterator[str]:
    """The lines of a table. Columns are right-aligned, except those in `left`."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
