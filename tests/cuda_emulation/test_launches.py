# SPDX-License-Identifier: BSD-3-Clause
"""The number of launches of each operator, with memsets, as the .cu files state it.

A launch takes about 2 us, which is most of the time for a small input. So one launch more must make
a test fail.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastdet
from tests.cuda_emulation import emulated_kernels, load
from tests.ops.test_every_op import boxes, integers, noise

pytestmark = pytest.mark.emulation

SIZES = torch.tensor([[60, 80], [50, 90]])


def suppress(n: int, counts: Tensor | None) -> Callable[[], object]:
    rows, scores = boxes(n)[None], noise(n)[None]
    return lambda: fastdet.nms_padded(rows, scores, 0.5, 10, None, counts)


def pyramid(n: int, *last: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Logits, deltas and anchors of two levels, with n and with 9 anchors."""
    logits = [noise(2, size, *last).to(dtype) for size in (n, 9)]
    return logits, [noise(2, size, 4).to(dtype) for size in (n, 9)], boxes(n + 9)


def propose(n: int, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    head = pyramid(n, dtype=dtype)
    return lambda: fastdet.rpn_proposals(*head, SIZES, 5000, 20, 0.7)


def propose_in_training(num_images: int) -> Callable[[], object]:
    """As an RPN does: the best 2,000 of each of five levels, the last of which has 741 anchors.

    No logit is above the threshold, so that the emulator has little to do.
    """
    logits = [torch.full((num_images, n), -9.0) for n in (*[2001] * 4, 741)]
    deltas = [torch.zeros(num_images, level.size(1), 4) for level in logits]
    anchors, sizes = torch.zeros(4 * 2001 + 741, 4), SIZES[:1].expand(num_images, 2)
    return lambda: fastdet.rpn_proposals(logits, deltas, anchors, sizes, 2000, 2000, 0.7, 0.5)


def detect(n: int) -> Callable[[], object]:
    head = pyramid(n, 3, dtype=torch.float32)
    return lambda: fastdet.retinanet_detections(*head, SIZES, 0.05, 1000, 0.5, 20)


def detect_in_rois() -> object:
    logits, deltas, proposals = noise(2, 50, 4), noise(2, 50, 4, 4), boxes(100).view(2, 50, 4)
    return fastdet.roi_detections(
        logits, deltas, proposals, None, SIZES, (1, 1, 1, 1), 0.05, 0.5, 20
    )


def mask_head(n: int) -> tuple[Tensor, ...]:
    """Logits, labels, masks, boxes and matches of n boxes."""
    masks, match = torch.ones(1, 2, 40, 60) > 0, torch.zeros(1, n, dtype=torch.int64)
    return noise(1, n, 3, 7, 7), match, masks, boxes(n)[None], match


def mask_loss_and_gradient() -> object:
    logits, *others = mask_head(5)
    leaf = logits.requires_grad_()
    return torch.autograd.grad(fastdet.mask_rcnn_loss(leaf, *others), leaf)


QUERIES = (
    noise(2, 2, 9, 5),
    noise(2, 2, 9, 4).sigmoid(),
    integers(0, 5, 2, 3),
    noise(2, 3, 4).sigmoid(),
    torch.tensor([3, 1]),
)


def focal_loss_and_gradient() -> object:
    """As fastdet.sigmoid_focal_loss does on a GPU, with a backward that has nothing to do."""
    logits, labels = noise(9, 5).requires_grad_(), integers(-1, 5, 9)
    loss, _ = torch.ops.fastdet.sigmoid_focal_loss_sum_and_grad(logits, labels, None, 0.25, 2.0)
    return torch.autograd.grad(loss, logits)


DENSE = (
    noise(2, 9, 5).sigmoid(),
    boxes(18).view(2, 9, 4),
    noise(9, 2) * 20,
    integers(0, 5, 2, 3),
    boxes(6, seed=3).view(2, 3, 4),
    torch.tensor([3, 1]),
)


def attention_and_gradient(deterministic: bool) -> object:
    value, weights = noise(1, 20, 2, 4).requires_grad_(), noise(1, 3, 2, 1, 2)
    locations = noise(1, 3, 2, 1, 2, 2)
    torch.use_deterministic_algorithms(deterministic)
    try:
        attended = fastdet.ms_deform_attn(value, [(4, 5)], locations, weights, softmax=True)
        return torch.autograd.grad(attended.sum(), value)
    finally:
        torch.use_deterministic_algorithms(False)


def convolution_and_gradient(deterministic: bool) -> object:
    input, offset = noise(2, 4, 5, 6).requires_grad_(), noise(2, 18, 5, 6)
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = fastdet.deform_conv2d(input, offset, noise(3, 4, 3, 3), padding=1)
        return torch.autograd.grad(found.sum(), input)
    finally:
        torch.use_deterministic_algorithms(False)


def pool_and_gradient() -> object:
    input, rois = noise(2, 8, 9, 11).requires_grad_(), torch.tensor([[0.0, 1, 1, 5, 5]])
    return torch.autograd.grad(fastdet.roi_align(input, rois, 3).sum(), input)


PASTED = noise(4, 7, 7).sigmoid(), boxes(4), (60, 80)

LAUNCHES = {
    "batched_nms": (lambda: fastdet.batched_nms(boxes(99), noise(99), integers(0, 5, 99), 0.5), 4),
    "nms_padded": (suppress(5000, None), 4),
    "nms_padded of more than 32768 rows": (suppress(33000, torch.tensor([5])), 8),
    "rpn_proposals": (propose(5000), 9),
    "rpn_proposals in training, 1 image": (propose_in_training(1), 9),
    "rpn_proposals in training, 2 images": (propose_in_training(2), 9),
    "rpn_proposals in training, 15 images": (propose_in_training(15), 9),
    "rpn_proposals in training, 16 images": (propose_in_training(16), 9),
    "rpn_proposals in training, 32 images": (propose_in_training(32), 9),
    "rpn_proposals, float16": (propose(100, torch.float16), 8),
    "rpn_proposals, float64": (propose(100, torch.float64), 12),
    "retinanet_detections": (detect(100), 9),
    "roi_detections": (detect_in_rois, 6),
    "ms_deform_attn, forward and backward": (lambda: attention_and_gradient(False), 2),
    "ms_deform_attn, deterministic": (lambda: attention_and_gradient(True), 3),
    "deform_conv2d, forward and backward": (lambda: convolution_and_gradient(False), 7),
    "deform_conv2d, deterministic": (lambda: convolution_and_gradient(True), 8),
    "roi_align, forward and backward": (pool_and_gradient, 5),
    "sample_matches": (lambda: fastdet.sample_matches(integers(-2, 3, 2, 50), 8, 0.5), 7),
    "assign_atss": (lambda: fastdet.assign_atss(boxes(9), [6, 3], *DENSE[-2:]), 3),
    "assign_simota": (
        lambda: fastdet.assign_simota(*DENSE[:3], torch.full((9,), 8.0), *DENSE[3:]),
        3,
    ),
    "assign_task_aligned": (lambda: fastdet.assign_task_aligned(*DENSE), 3),
    "linear_assignment": (lambda: fastdet.linear_assignment(noise(3, 4, 5)), 2),
    "match_queries": (lambda: fastdet.match_queries(*QUERIES), 2),
    "sigmoid_focal_loss, summed, forward and backward": (focal_loss_and_gradient, 3),
    "crop_masks": (lambda: fastdet.crop_masks(*mask_head(5)[2:], 7), 1),
    "mask_rcnn_loss, forward and backward": (mask_loss_and_gradient, 4),
    "paste_masks": (lambda: fastdet.paste_masks(*PASTED), 2),
    "paste_masks_rle": (lambda: fastdet.paste_masks_rle(*PASTED), 5),
    "encode_masks": (lambda: fastdet.encode_masks(noise(4, 60, 80) > 0), 4),
}


def test_nms_copies_nothing_after_the_wait():
    rows, scores = boxes(99), noise(99)
    fastdet.nms(rows, scores, 0.5)  # the first call prepares more
    with emulated_kernels(), torch.profiler.profile() as profiled:
        fastdet.nms(rows, scores, 0.5)
    called = {event.key for event in profiled.key_averages()}
    assert "fastdet::nms" in called
    assert not called & {"aten::clone", "aten::copy_"}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_are_as_few_as_stated(name):
    call, expected = LAUNCHES[name]
    library = load()
    with emulated_kernels():
        before = library.cuda_emulation_num_launches()
        call()
        assert library.cuda_emulation_num_launches() - before == expected
