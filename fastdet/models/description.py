# SPDX-License-Identifier: BSD-3-Clause
"""What a detector consists of: parameters, FLOPs and anchors, at one image size.

The model runs once on tensors that have shapes and no values: in less than a second and without
memory, whatever its size. Its weights and its mode stay as they are.
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
        parameters: how many numbers.
        trainable: how many of them have requires_grad.
        flops: of its convolutions and matrix products, a multiplication and an addition each.
    """

    name: str
    parameters: int
    trainable: int
    flops: int


@dataclass(frozen=True)
class Level:
    """A level of the pyramid.

    Attributes:
        stride: pixels from one location to the next, down and across.
        grid: locations, down and across.
        sizes: width and height in pixels of the anchors of a location; of FCOS, its square.
    """

    stride: tuple[int, int]
    grid: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]

    @property
    def anchors(self) -> int:
        """How many: those of a location, times the locations."""
        return self.grid[0] * self.grid[1] * len(self.sizes)


@dataclass(frozen=True)
class Description:
    """What `describe` found; as a string, a table of parts and, if there are anchors, of levels."""

    model: str
    image_size: tuple[int, int]
    parts: tuple[Part, ...]
    levels: tuple[Level, ...]

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        """Of all parts."""
        return sum(part.trainable for part in self.parts)

    @property
    def flops(self) -> int:
        """Of all parts, for one image."""
        return sum(part.flops for part in self.parts)

    @property
    def anchors(self) -> int:
        """Of all levels."""
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
    """Parameters and FLOPs of a detector's parts, and the anchors of its levels.

    Args:
        model: any detector, on any device, in any mode.
        image_size: height and width of the padded image; rounded up to the model's size_divisor.

    Returns:
        A Description; `print` it. FLOPs are those of detection in one image, with as many
        proposals as the numbers of the model allow, two for each multiplication and addition of
        the convolutions and matrix products. Norms, activations and fastdet's own operators
        (RoIAlign, suppression, ...) are left out.

    Raises:
        ValueError: an image_size without pixels.
    """
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
    """`detect` as a forward, so that the counter knows every module by its name in the model."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Detections:
        """As `Detector.detect`."""
        return self.model.detect(batch)


def _run(
    model: Detector, image_size: tuple[int, int]
) -> tuple[dict[str, dict[Any, int]], list[tuple[int, int]]]:
    """FLOPs by module and operator, and the grid of each level that has anchors."""
    tensors = (*model.parameters(), *model.buffers())
    # A copy that shares the weights: its mode and hooks are its own.
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
    """The model's modules, each divided into its own modules once.

    Not divided: a layer, a Sequential, a backbone without a pyramid.
    """
    for name, child in model.named_children():
        layer = next(child.parameters(recurse=False), None) is not None
        whole_backbone = name == "backbone" and not hasattr(child, "fpn")
        if layer or isinstance(child, nn.Sequential) or whole_backbone:
            yield name, child
        else:
            yield from ((f"{name}.{inner}", part) for inner, part in child.named_children())


def _flops(counts: dict[str, dict[Any, int]], name: str, module: nn.Module) -> int:
    """Of a module, or of its children where these are called and not the module itself."""
    if name in counts:
        return sum(counts[name].values())
    return sum(_flops(counts, f"{name}.{inner}", m) for inner, m in module.named_children())


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"


def _table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], left: tuple[int, ...]
) -> Iterator[str]:
    """Lines of text; columns are aligned to the right except those in `left`."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
