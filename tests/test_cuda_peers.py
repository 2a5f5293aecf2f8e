# SPDX-License-Identifier: BSD-3-Clause
"""The bytes counted for torchvision's CUDA kernels are those of their loops, walked by hand."""

import math

import pytest
import torch
import torchvision
from torch import Tensor

import fastdet
from benchmarks.gpu.case import GpuCase, forward
from benchmarks.workloads import random_boxes, seeded
from tools import cuda_peers
from tools.cuda_peers import Launch

N = 150  # three blocks of 64, the last of 22


def launches_of(function, *inputs: Tensor) -> list[Launch]:
    case = GpuCase(op="", workload="", inputs=inputs, sides={"torchvision": forward(function)})
    return cuda_peers.count(case)


def named(launches: list[Launch], name: str) -> Launch:
    (found,) = (each for each in launches if each.name == name)
    return found


def test_each_call_of_torch_reads_and_writes_its_tensors_once():
    boxes = random_boxes(N, 100, 100, 30)
    launches = launches_of(torchvision.ops.box_area, boxes)
    assert [name for name, *_ in launches] == ["sub", "sub", "mul"]
    assert [tensors for _, tensors, _ in launches] == [3 * 4 * N] * 3


def test_what_is_expanded_is_read_once_and_views_are_nothing():
    column, row = torch.zeros(3, 1), torch.zeros(5)
    (add,) = launches_of(lambda c, r: c.expand(3, 5) + r[None], column, row)
    assert add.tensors == 4 * (3 + 5 + 15)


def test_functions_that_write_do_not_read_their_target():
    def run(target: Tensor) -> None:
        target.zero_()
        target[2:5] = 1
        target.add_(1)

    launches = launches_of(run, torch.zeros(9))
    assert [tensors for _, tensors, _ in launches] == [36, 4 + 12, 72]


def test_nms_by_its_loops():
    boxes, scores = random_boxes(N, 100, 100, 40), torch.rand(N, generator=seeded(1))
    keep = fastdet.nms(boxes, scores, 0.5).tolist()
    order = scores.sort(descending=True).indices.tolist()
    loaded = words = walked = 0
    for row_start in range(0, N, 64):
        for column_start in range(row_start, N, 64):
            loaded += len(range(row_start, N)[:64]) + len(range(column_start, N)[:64])
            words += len(range(row_start, N)[:64])
    for place, box in enumerate(order):
        walked += len(range(place // 64, 3)) if box in keep else 0
    assert 0 < len(keep) < N
    launches = launches_of(lambda b, s: torchvision.ops.nms(b, s, 0.5), boxes, scores)
    mask = named(launches, "nms_kernel_impl")
    assert mask.tensors == 16 * N + 8 * words
    assert mask.asked == 16 * loaded + 8 * words
    assert named(launches, "gather_keep_from_mask").tensors == 8 * walked + len(keep)


@pytest.mark.parametrize("ratio", [2, -1])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_by_its_loops(ratio, aligned):
    channels, bins, scale = 3, (2, 5), 0.5
    features = torch.zeros(1, channels, 30, 40)
    rois = torch.cat([torch.zeros(7, 1), random_boxes(7, 40, 30, 25)], 1)
    taps = 0
    for roi in rois.tolist():
        sides = [(roi[4] - roi[2]) * scale, (roi[3] - roi[1]) * scale]
        if not aligned:
            sides = [max(side, 1.0) for side in sides]
        grid = [ratio if ratio > 0 else math.ceil(s / b) for s, b in zip(sides, bins, strict=True)]
        for _bin in range(bins[0] * bins[1]):
            for _sample in range(grid[0] * grid[1]):
                taps += 4 * channels
    outputs = 7 * channels * bins[0] * bins[1]

    def pool(x: Tensor, r: Tensor) -> Tensor:
        return torchvision.ops.roi_align(x, r, bins, scale, ratio, aligned)

    forward_launch = named(launches_of(pool, features, rois), "roi_align_forward_kernel_impl")
    assert forward_launch.asked == 4 * (taps + 6 * outputs)
    leaf = features.requires_grad_()

    def gradient(x: Tensor, r: Tensor) -> None:
        pool(leaf, r).sum().backward()

    backward_launch = named(launches_of(gradient, features, rois), "roi_align_backward_kernel_impl")
    assert backward_launch.asked == 4 * (taps + 6 * outputs)


@pytest.mark.parametrize("with_mask", [False, True])
def test_deform_conv2d_by_its_loops(with_mask):
    batch, channels, outputs, taps, places = 2, 3, 4, 9, 5 * 6
    inputs = [torch.zeros(batch, channels, 5, 6), torch.zeros(batch, 2 * taps, 5, 6)]
    inputs += [torch.zeros(outputs, channels, 3, 3), torch.zeros(outputs)]
    inputs += [torch.ones(batch, taps, 5, 6)] if with_mask else []
    columns = asked = 0
    for _ in range(batch * channels * places * taps):
        columns += 4
        asked += 4 * (4 + 2 + with_mask) + 4

    def convolve(x: Tensor, o: Tensor, w: Tensor, b: Tensor, *mask: Tensor) -> Tensor:
        return torchvision.ops.deform_conv2d(x, o, w, b, padding=1, mask=mask[0] if mask else None)

    launches = launches_of(convolve, *inputs)
    read = sum(x.nbytes for i, x in enumerate(inputs) if i not in (2, 3))
    assert named(launches, "deformable_im2col_kernel") == (
        "deformable_im2col_kernel",
        read + columns,
        asked,
    )
    output = 4 * batch * outputs * places
    product = named(launches, "addmm_")
    assert product.tensors == inputs[2].nbytes + columns + 2 * output


class Walk:
    """The bytes of float32 that loops ask for, and those that they touch."""

    def __init__(self) -> None:
        self.asked = 0
        self.read: set[tuple[object, ...]] = set()
        self.written: set[tuple[object, ...]] = set()

    def load(self, *place: object) -> None:
        self.asked += 4
        self.read.add(place)

    def store(self, *place: object) -> None:
        self.asked += 4
        self.written.add(place)

    def add(self, *place: object) -> None:
        """Atomically."""
        self.store(*place)
        self.read.add(place)

    @property
    def tensors(self) -> int:
        return 4 * (len(self.read) + len(self.written))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("with_mask", [False, True])
def test_the_gradient_of_deform_conv2d_by_its_loops(with_mask, groups):
    batch, channels, outputs, taps, places = 3, 4, 2, 9, 3 * 4
    # With this step and these fractions each sample has four pixels, and all pixels are sampled.
    features, weight = torch.zeros(batch, channels, 8, 10), torch.zeros(outputs, channels, 3, 3)
    offset = 0.25 + torch.rand(batch, groups * taps * 2, 3, 4, generator=seeded(1)) / 2
    mask = torch.ones(batch, groups * taps, 3, 4)

    coordinates, inputs = Walk(), Walk()

    def at_sample(walk: Walk, image: int, channel: int, tap: int, place: int) -> list[object]:
        """Loads what says where a sample lies; returns its four pixels."""
        group = channel // (channels // groups)
        for axis in range(2):
            walk.load("offset", image, group, tap, axis, place)
        if with_mask:
            walk.load("mask", image, group, tap, place)
        field = offset.view(batch, groups, taps, 2, places)[image, group, tap, :, place]
        y = math.floor(2 * (place // 4) + tap // 3 + float(field[0]))
        x = math.floor(2 * (place % 4) + tap % 3 + float(field[1]))
        found = [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)]
        assert all(0 <= row < 8 and 0 <= column < 10 for row, column in found)
        return [*found]

    samples = [
        (image, channel, tap, place)
        for image in range(batch)
        for channel in range(channels)
        for tap in range(taps)
        for place in range(places)
    ]
    for sample in samples:
        image, channel, tap, place = sample
        group = channel // (channels // groups)
        first = channel % (channels // groups) == 0  # stores are once for all channels of a group
        for axis in range(2):
            coordinates.load("columns", *sample)
            pixels = at_sample(coordinates, *sample)
            for pixel in pixels * (2 if with_mask and axis == 0 else 1):
                coordinates.load("features", image, channel, pixel)
            if first:
                coordinates.store("gradient of offset", image, group, tap, axis, place)
        if with_mask and first:
            coordinates.store("gradient of mask", image, group, tap, place)
        inputs.load("columns", *sample)
        for pixel in at_sample(inputs, *sample):
            inputs.add("gradient of features", image, channel, pixel)

    leaves = [features.requires_grad_(), weight.requires_grad_(), offset.requires_grad_()]
    bias = torch.zeros(outputs, requires_grad=True)
    masks = [mask.requires_grad_()] if with_mask else []

    def gradient(*_: Tensor) -> None:
        x, w, o = leaves
        out = torchvision.ops.deform_conv2d(x, o, w, bias, 2, mask=masks[0] if masks else None)
        out.sum().backward()

    launches = launches_of(gradient, features)
    launches = launches[[each.name for each in launches].index("zeros_like") :]  # of backward
    for name, walk in (("_coord", coordinates), ("", inputs)):
        found = named(launches, f"deformable_col2im{name}_kernel")
        assert (found.tensors, found.asked) == (walk.tensors, walk.asked)
    columns = 4 * len(samples)
    gradients = [named(launches, name).tensors for name in ("addmm_", "addmm_, weight")]
    output = 4 * batch * outputs * places
    assert gradients == [weight.nbytes + output + 2 * columns, columns + output + 2 * weight.nbytes]


def test_the_sums_of_our_kernels_come_from_the_table():
    lines = [
        "| operator | workload | kernel | launches | memory MB | L2 MB | s | b | at least | by |",
        "| nms | 9 boxes / 16 | `a` | 1 | 0.20 | 1.50 | 92% | 99% | 1.5 | issue |",
        "| nms | 9 boxes / 16 | `b` | 2 | 0.00 | 1.07 | 77% |  | 0.4 | issue |",
    ]
    assert cuda_peers.ours(lines) == {("nms", "9 boxes"): pytest.approx(2.57)}
