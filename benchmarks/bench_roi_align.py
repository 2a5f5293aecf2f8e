# SPDX-License-Identifier: BSD-3-Clause
"""RoIAlign, from one feature map and from four, NCHW and channels_last.

The floor reads each feature that some RoI touches once and writes the output; backward reads the
output's gradient and writes that of the features.
"""

from collections.abc import Sequence

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.results import Point
from benchmarks.workloads import backward, random_boxes, seeded

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
CHANNELS, BINS, RATIO = 256, 7, 2
HEIGHT, WIDTH, SCALE = 200, 256, 1 / 4  # of the finest level

# A bin is the average of RATIO^2 samples of 4 features each; merged taps can only be fewer.
OPERATIONS = 4 * RATIO**2

both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def features(beside: Beside, layout: str) -> Tensor:
    """(2, 256, 200, 256)."""
    shape = (2, beside.size(CHANNELS), HEIGHT, WIDTH)
    return torch.randn(shape, generator=seeded(8)).to(memory_format=LAYOUTS[layout])


def rois(n: int, largest: float = 400) -> Tensor:
    """(n, 5) on two images in turn."""
    boxes = random_boxes(n, 900, 700, largest, seed=9)
    return torch.cat([torch.arange(n)[:, None] % 2, boxes], 1)


def touched(rois: Tensor) -> int:
    """Feature pixels of the finest level under the RoIs of two images."""
    mask = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    for image, x1, y1, x2, y2 in rois.tolist():
        rows = slice(int(y1 * SCALE), int(y2 * SCALE) + 2)
        mask[int(image), rows, int(x1 * SCALE) : int(x2 * SCALE) + 2] = True
    return int(mask.sum())


@both_layouts
@pytest.mark.parametrize("n", [64, 256, 1024, 4096])
def bench_forward(beside: Beside, n: int, layout: str) -> None:
    n = beside.size(n)
    x, boxes = features(beside, layout), rois(n)
    channels = x.size(1)
    beside(
        Case(
            op="roi_align",
            workload=f"{n:,} RoIs, {channels} x {BINS} x {BINS}, {layout}",
            sides={
                "fastdet": lambda: fastdet.roi_align(x, boxes, BINS, SCALE, RATIO),
                "torchvision": lambda: torchvision.ops.roi_align(x, boxes, BINS, SCALE, RATIO),
            },
            floor=stream(4 * channels * touched(boxes), 4 * n * channels * BINS**2),
            operations=OPERATIONS * n * channels * BINS**2,
            exact=lambda: torchvision.ops.roi_align(x.double(), boxes.double(), BINS, SCALE, RATIO),
            target={"NCHW": 8.0, "channels_last": 25.0}[layout] if n == 1024 else None,
            growth=n != 1024,
            point=Point(f"roi_align, {layout}", "RoIs", n),
        )
    )


@both_layouts
def bench_adaptive_forward(beside: Beside, layout: str) -> None:
    """As many samples as feature pixels: large RoIs must stay fast."""
    n = beside.size(64)
    x, boxes = features(beside, layout), rois(n)
    boxes[:, 1:] = torch.tensor([50.0, 20.0, 850.0, 780.0]) + torch.arange(n)[:, None] / 8
    channels = x.size(1)
    beside(
        Case(
            op="roi_align",
            workload=f"{n} RoIs of 800 x 760 px, adaptive ratio, {layout}",
            sides={
                "fastdet": lambda: fastdet.roi_align(x, boxes, BINS, SCALE, 0),
                "torchvision": lambda: torchvision.ops.roi_align(x, boxes, BINS, SCALE, 0),
            },
            floor=stream(4 * channels * touched(boxes), 4 * n * channels * BINS**2),
            # Each feature of each RoI enters some bin.
            operations=n * channels * 200 * 190,
            exact=lambda: torchvision.ops.roi_align(x.double(), boxes.double(), BINS, SCALE, 0),
        )
    )


@both_layouts
def bench_backward(beside: Beside, layout: str) -> None:
    n = beside.size(1024)
    boxes = rois(n)
    x = features(beside, layout).requires_grad_()
    wide = x.detach().double().requires_grad_()
    values = n * x.size(1) * BINS**2

    def theirs(x: Tensor) -> Tensor:
        return torchvision.ops.roi_align(x, boxes.to(x.dtype), BINS, SCALE, RATIO)

    beside(
        Case(
            op="roi_align",
            workload=f"{n:,} RoIs, {x.size(1)} x {BINS} x {BINS}, {layout}, backward",
            sides={
                "fastdet": backward(lambda: fastdet.roi_align(x, boxes, BINS, SCALE, RATIO), [x]),
                "torchvision": backward(lambda: theirs(x), [x]),
            },
            floor=stream(4 * values, x.nbytes),
            operations=OPERATIONS * values,
            exact=lambda: backward(lambda: theirs(wide), [wide])(),
            target=15.0,
        )
    )


class Pyramid:
    """Four levels and 512 boxes on each of two images, as both sides take them."""

    def __init__(self, beside: Beside, layout: str) -> None:
        finest = features(beside, layout)
        self.levels = [
            finest[:, :, ::s, ::s].contiguous(memory_format=LAYOUTS[layout]) for s in (1, 2, 4, 8)
        ]
        self.boxes = random_boxes(beside.size(1024), 900, 700, 400, seed=9).view(2, -1, 4)
        self.pooler = MultiScaleRoIAlign([str(i) for i in range(4)], BINS, RATIO)
        self.values = self.boxes.shape[:2].numel() * finest.size(1) * BINS**2

    def ours(self, levels: Sequence[Tensor]) -> Tensor:
        scales = [SCALE / 2**i for i in range(4)]
        pooled = fastdet.multiscale_roi_align(levels, self.boxes, None, BINS, scales, RATIO)
        return pooled.flatten(0, 1)

    def theirs(self, levels: Sequence[Tensor]) -> Tensor:
        named = {str(i): level for i, level in enumerate(levels)}
        return self.pooler(named, list(self.boxes.to(levels[0].dtype)), [(800, 1024)] * 2)


@both_layouts
def bench_multiscale_forward(beside: Beside, layout: str) -> None:
    p = Pyramid(beside, layout)
    beside(
        Case(
            op="multiscale_roi_align",
            workload=f"4 levels, {p.boxes.shape[:2].numel():,} RoIs, {layout}",
            sides={
                "fastdet": lambda: p.ours(p.levels),
                "torchvision": lambda: p.theirs(p.levels),
            },
            # An upper bound: parts of the levels that no RoI reads are not subtracted.
            floor=stream(sum(level.nbytes for level in p.levels), 4 * p.values),
            operations=OPERATIONS * p.values,
            exact=lambda: p.theirs([level.double() for level in p.levels]),
            target={"NCHW": 8.0, "channels_last": 20.0}[layout],
        )
    )


@both_layouts
def bench_multiscale_backward(beside: Beside, layout: str) -> None:
    p = Pyramid(beside, layout)
    leaves = [level.requires_grad_() for level in p.levels]
    wide = [level.detach().double().requires_grad_() for level in p.levels]
    beside(
        Case(
            op="multiscale_roi_align",
            workload=f"4 levels, {p.boxes.shape[:2].numel():,} RoIs, {layout}, backward",
            sides={
                "fastdet": backward(lambda: p.ours(leaves), leaves),
                "torchvision": backward(lambda: p.theirs(leaves), leaves),
            },
            floor=stream(4 * p.values, sum(level.nbytes for level in p.levels)),
            operations=OPERATIONS * p.values,
            exact=lambda: backward(lambda: p.theirs(wide), wide)(),
        )
    )
