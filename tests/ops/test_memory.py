# SPDX-License-Identifier: BSD-3-Clause
"""No operator allocates more than its outputs and the workspace that its docstring states.

Measured by the Linux kernel's peak resident size of the process, which the test resets before a
call. One extra tensor of the size of an input is detected.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import fastdet
from tests.ops.test_every_op import boxes, integers, noise, rois_of

MB = 2**20
# For stacks of threads, small buffers of threads, and pages that the allocator touches.
SLACK = 6 * MB

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
pytestmark = [
    pytest.mark.memory,
    pytest.mark.skipif(not CLEAR_REFS.exists(), reason="needs Linux's count of resident pages"),
]


def resident(name: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def peak(run: Callable[[], object]) -> int:
    """Peak memory, in bytes, of a second call beyond the memory before that call."""
    run()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5")
    before = resident("VmRSS")
    kept = run()
    most = resident("VmHWM")
    del kept
    return most - before


def test_a_copy_of_an_input_is_seen():
    x = torch.ones(10 * MB)
    assert peak(lambda: x + 1) >= 39 * MB
    assert peak(lambda: (x + 1) + 1) >= 79 * MB
    assert peak(lambda: x.sum()) < SLACK


def both_ways(op: Callable[..., Tensor], x: Tensor, *tensors: Tensor) -> Callable[[], object]:
    """A call that computes the output and the gradient of x."""
    leaf = x.detach().requires_grad_()
    grad = op(leaf, *tensors).detach()
    return lambda: torch.autograd.grad(op(leaf, *tensors), leaf, grad)


class Case(NamedTuple):
    """A call, the bytes of its results and, if it sorts, of its workspace for indices."""

    run: Callable[[], object]
    outputs: int
    workspace: int = 0


N = 400_000  # 6.4 MB of boxes


def nms() -> Case:
    rows, scores = boxes(N, extent=20_000), noise(N)
    # Sorted keys and indices, and the kept boxes with their grid.
    return Case(lambda: fastdet.nms(rows, scores, 0.5), 2 * 8 * N, 64 * N)


def nmm() -> Case:
    rows, scores = boxes(N, extent=20_000), noise(N)
    # Sorted keys and indices, and the boxes twice with their grid.
    return Case(lambda: fastdet.nmm(rows, scores), 24 * N, 120 * N)


def match_anchors() -> Case:
    anchors, gts = boxes(N, extent=1000), boxes(100, seed=4, extent=1000)
    counts = torch.tensor([100])
    return Case(lambda: fastdet.match_anchors(anchors, gts[None], counts, 0.7, 0.3), 12 * N)


def assign_atss() -> Case:
    anchors, gts, topk, levels = 100_000, 5000, 9, 2  # a matrix of anchors x gts would be 2 GB
    rows, targets = boxes(anchors, extent=2000), boxes(gts, seed=4, extent=2000)[None]
    sizes, counts = [anchors - 20_000, 20_000], torch.tensor([gts])
    return Case(
        lambda: fastdet.assign_atss(rows, sizes, targets, counts, topk),
        12 * anchors,
        16 * anchors + 8 * gts * topk * levels,
    )


def assign_simota() -> Case:
    anchors, gts, topk = 40_000, 1000, 10  # a matrix of anchors x gts would be 160 MB
    predictions = noise(1, anchors, 20).sigmoid(), boxes(anchors, extent=2000)[None]
    points = (predictions[1][0, :, :2] + predictions[1][0, :, 2:]) / 2
    targets = integers(0, 20, 1, gts), boxes(gts, seed=4, extent=2000)[None]
    strides, counts = torch.full((anchors,), 8.0), torch.tensor([gts])
    return Case(
        lambda: fastdet.assign_simota(*predictions, points, strides, *targets, counts),
        12 * anchors,
        32 * anchors + 8 * gts * topk,
    )


def assign_task_aligned() -> Case:
    anchors, gts, topk = 40_000, 5000, 10  # a matrix of anchors x gts would be 800 MB
    predictions = noise(1, anchors, 20).sigmoid(), boxes(anchors, extent=2000)[None]
    points = (predictions[1][0, :, :2] + predictions[1][0, :, 2:]) / 2
    targets = integers(0, 20, 1, gts), boxes(gts, seed=4, extent=2000)[None]
    counts = torch.tensor([gts])
    return Case(
        lambda: fastdet.assign_task_aligned(*predictions, points, *targets, counts, topk),
        12 * anchors,
        12 * (anchors + gts * topk),
    )


def linear_assignment() -> Case:
    cost = noise(100, 400, 300)  # a copy in float64 would be 96 MB
    return Case(lambda: fastdet.linear_assignment(cost), 8 * 100 * 400)


def match_queries() -> Case:
    layers, images, queries, gts = 6, 8, 900, 100  # all costs would be 35 MB
    outputs = noise(layers, images, queries, 20), noise(layers, images, queries, 4).sigmoid()
    targets = integers(0, 20, images, gts), noise(images, gts, 4).sigmoid()
    counts = torch.full((images,), gts)
    return Case(
        lambda: fastdet.match_queries(*outputs, *targets, counts), 8 * layers * images * queries
    )


def box_iou() -> Case:
    few, many = boxes(50), boxes(N)
    return Case(lambda: fastdet.box_iou(few, many), 4 * 50 * N, 20 * N)


def decode_boxes() -> Case:
    anchors, deltas = boxes(N), noise(N, 4)
    return Case(lambda: fastdet.decode_boxes(deltas, anchors), 16 * N)


def encode_boxes() -> Case:
    anchors, rows = boxes(N), boxes(N, seed=3)
    return Case(lambda: fastdet.encode_boxes(rows, anchors), 16 * N)


def generalized_box_iou_loss() -> Case:
    a, b = boxes(N), boxes(N, seed=3)
    # The loss, and the gradient of both arguments.
    return Case(both_ways(fastdet.generalized_box_iou_loss, a, b), 4 * N + 2 * 16 * N)


def sigmoid_focal_loss() -> Case:
    logits, labels = noise(N, 40), integers(-2, 40, N)
    return Case(both_ways(fastdet.sigmoid_focal_loss, logits, labels), 2 * 4 * 40 * N)


def retinanet_detections() -> Case:
    logits, deltas, anchors = noise(1, N // 4, 80) - 4, noise(1, N // 4, 4), boxes(N // 4)
    sizes = torch.tensor([[600, 800]])
    # The workspace is 1,000 candidates for each thread.
    return Case(
        lambda: fastdet.retinanet_detections(
            [logits], [deltas], anchors, sizes, 0.05, 1000, 0.5, 300
        ),
        300 * 28,
    )


def rpn_proposals() -> Case:
    logits, deltas, anchors = noise(2, N), noise(2, N, 4), boxes(N)
    sizes = torch.tensor([[600, 800]]).repeat(2, 1)
    return Case(
        lambda: fastdet.rpn_proposals([logits], [deltas], anchors, sizes, 2000, 1000, 0.7),
        2 * 1000 * 28,
    )


def roi_align(channels_last: bool = False) -> Case:
    features, rois = noise(2, 64, 200, 256), rois_of(boxes(1024, extent=700))
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    pooled, grad = 4 * 1024 * 64 * 49, features.numel() * 4
    return Case(
        both_ways(lambda x, r: fastdet.roi_align(x, r, 7, 0.25, 2), features, rois), pooled + grad
    )


def roi_align_channels_last() -> Case:
    return roi_align(channels_last=True)


def ms_deform_attn() -> Case:
    shapes = [(128, 160), (64, 80)]
    value, points = noise(1, 25_600, 8, 32), noise(1, 4000, 8, 2, 4, 2) * 0.3 + 0.5
    weights = noise(1, 4000, 8, 2, 4)
    return Case(
        both_ways(
            lambda v, p, w: fastdet.ms_deform_attn(v, shapes, p, w, softmax=True),
            value,
            points,
            weights,
        ),
        # The output, and the gradients of all tensors. The workspace is a head for each thread.
        4 * 4000 * 256 + value.nbytes + points.nbytes + weights.nbytes,
        value.nbytes // 8 * torch.get_num_threads(),
    )


def deform_conv2d() -> Case:
    input, offset, mask = noise(1, 64, 200, 200), noise(1, 18, 200, 200), noise(1, 9, 200, 200)
    weight = noise(64, 64, 3, 3)

    def convolve(x: Tensor, o: Tensor, m: Tensor) -> Tensor:
        return fastdet.deform_conv2d(x, o, weight, padding=1, mask=m)

    # The output, and the gradients of all tensors. The workspace is a copy of the input and of its
    # gradient, and a part of the columns; all columns and their gradients would be 184 MB. The heap
    # may keep the copy that forward made.
    outputs = 2 * input.nbytes + offset.nbytes + mask.nbytes
    return Case(both_ways(convolve, input, offset, mask), outputs, 3 * input.nbytes + 8 * MB)


def mask_rcnn_loss() -> Case:
    logits, masks = noise(1, 200, 40, 28, 28), torch.ones(1, 20, 800, 1200) > 0
    match = torch.arange(200)[None] % 20
    rows = boxes(200, extent=700)[None]
    # The gradient, and one channel of it.
    return Case(
        both_ways(fastdet.mask_rcnn_loss, logits, match, masks, rows, match), logits.numel() * 4
    )


def paste_masks() -> Case:
    masks, rows = noise(20, 28, 28).sigmoid(), boxes(20, extent=700)
    return Case(lambda: fastdet.paste_masks(masks, rows, (800, 1200)), 20 * 800 * 1200)


def paste_masks_rle() -> Case:
    masks, rows = noise(20, 28, 28).sigmoid(), boxes(20, extent=700)
    return Case(lambda: fastdet.paste_masks_rle(masks, rows, (4000, 6000)), 0)


CASES = [
    nms,
    nmm,
    match_anchors,
    assign_atss,
    assign_simota,
    assign_task_aligned,
    linear_assignment,
    match_queries,
    box_iou,
    decode_boxes,
    encode_boxes,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
    retinanet_detections,
    rpn_proposals,
    roi_align,
    roi_align_channels_last,
    ms_deform_attn,
    deform_conv2d,
    mask_rcnn_loss,
    paste_masks,
    paste_masks_rle,
]


# (images, channels, rois); with the 200,000 bins a RoI the taps would be 11 MB and more.
NOTHING_TO_POOL = {
    "no channels": (1, 0, 32),
    "no channels, no image": (0, 0, 32),
    "no rois": (1, 64, 0),
}


def nothing_to_pool(images: int, channels: int, num_rois: int) -> tuple[Tensor, Tensor]:
    """Features that RoIAlign would copy, as neither dimension is dense, and rois."""
    features = noise(images, channels, 400, 400)[..., ::2, ::2].requires_grad_()
    return features, rois_of(boxes(num_rois))


@pytest.mark.parametrize("sizes", NOTHING_TO_POOL.values(), ids=NOTHING_TO_POOL)
def test_roi_align_of_nothing_takes_no_memory(sizes):
    features, rois = nothing_to_pool(*sizes)

    def pool() -> Tensor:
        return fastdet.roi_align(features, rois, (100_000, 100_000), 0.25, 1)

    assert pool().shape == (sizes[2], sizes[1], 100_000, 100_000)
    assert peak(pool) <= SLACK


@pytest.mark.parametrize("sizes", NOTHING_TO_POOL.values(), ids=NOTHING_TO_POOL)
def test_multiscale_roi_align_of_nothing_takes_no_memory(sizes):
    features, rois = nothing_to_pool(*sizes)
    rows = rois[:, 1:].expand(sizes[0], -1, -1)

    def pool() -> Tensor:
        return fastdet.multiscale_roi_align(
            [features, features], rows, None, (100_000, 100_000), [0.25, 0.125], 1
        )

    assert pool().numel() == 0
    assert peak(pool) <= SLACK


def test_the_gradient_of_no_channels_takes_no_memory():
    _, rois = nothing_to_pool(1, 0, 32)
    grad = torch.zeros(32, 0, 100_000, 100_000)
    ops = torch.ops.fastdet
    single = (0.25, 1, 0, 200, 200, 1, False, False, True)
    assert peak(lambda: ops.roi_align_backward(grad, rois, *single)) <= SLACK
    levels = ([200, 100], [200, 100], [0.25, 0.125], 1, 224, 4, False, False, True)
    backward = ops.multiscale_roi_align_backward
    assert peak(lambda: backward(grad[None], rois[None, :, 1:], None, *levels)) <= SLACK


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_peak_is_outputs_and_workspace(case):
    run, outputs, workspace = case()
    assert peak(run) <= outputs + workspace + SLACK
