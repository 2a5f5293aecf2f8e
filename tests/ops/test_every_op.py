# SPDX-License-Identifier: BSD-3-Clause
"""Properties of every operator: one table of calls, one test per property.

The result of a call is the bits of its outputs and of the gradients of its floating inputs. It does
not depend on the number of threads, nor on the address and the strides of the inputs. Indices do
not depend on the instruction set. Rows that are not finite do not change the other rows. Tensors on
several devices are refused. Sizes are 0 to 2^20.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdet
from fastdet import _native
from fastdet.ops.max_pool import max_pool2d
from fastdet.ops.quantize_map import quantize_map
from fastdet.ops.roi_align import add_multiscale_grad
from fastdet.ops.upsample_nearest import upsample_nearest
from fastdet.ops.winograd import (
    winograd_conv,
    winograd_filters,
    winograd_filters_grad,
    winograd_filters_turned,
)
from fastdet.ops.winograd_int8 import (
    winograd_conv_int8,
    winograd_filters_int8,
    winograd_roundings_int8,
)

BIG = 2**20


class Call(NamedTuple):
    """An operator as a function of its tensors, and whether its gradients are compared, too."""

    run: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    differentiable: bool = False


def boxes(n: int, seed: int = 0, extent: float = 100) -> Tensor:
    """(n, 4) with fractional coordinates; some are partly outside, with negative corners."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * extent - 10
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * 40], 1)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(low: int, high: int, *shape: int, seed: int = 2) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def rois_of(rows: Tensor) -> Tensor:
    return torch.cat([torch.arange(len(rows))[:, None] % 2, rows], 1)


@lru_cache(maxsize=2)  # tests of the same size, or of two sizes, follow each other
def calls(n: int, extent: float = 100) -> dict[str, Call]:
    """Every public operator on n boxes (anchors, RoIs, rows of logits). Do not change tensors."""
    rows, others = boxes(n, extent=extent), boxes(n, seed=3, extent=extent)
    scores, ids = noise(n), integers(-(2**62), 2**62, 3)[integers(0, 3, n)]
    gts = boxes(560, seed=4, extent=extent).reshape(2, 280, 4)
    gt_counts, gt_labels = torch.tensor([280, 4]), integers(0, 6, 2, 280)
    predicted, two_of_each = noise(2, n, 6).sigmoid(), torch.stack([rows, others])
    few = boxes(7, seed=5, extent=extent)
    deltas = noise(n, 4) * 0.3
    sizes = torch.tensor([[60, 80]]).repeat(n, 1)
    features = noise(2, 5, 24, 40)
    pyramid = [features, features[:, :, ::2, ::2].contiguous()]
    matches = integers(-2, 3, 2, n)
    logits, labels = noise(n, 6), integers(-2, 6, n)

    def pool(x: Tensor, r: Tensor) -> Tensor:
        return fastdet.roi_align(x, r, 3, 0.25, 2)

    def pool_adaptively(x: Tensor, r: Tensor) -> Tensor:
        return fastdet.roi_align(x, r, (2, 3), 0.25, 0, True)

    def pool_levels(x0: Tensor, x1: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return fastdet.multiscale_roi_align([x0, x1], b, c, 2, [0.25, 0.125])

    def match(low_quality: str) -> Callable[..., tuple[Tensor, ...]]:
        return lambda a, g, c: fastdet.match_anchors(a, g, c, 0.5, 0.3, low_quality)

    def propose(x: Tensor, d: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        return fastdet.rpn_proposals([x], [d], a, s, 500, 20, 0.5)

    def detect(x: Tensor, d: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        return fastdet.retinanet_detections([x], [d], a, s, 0.3, 500, 0.5, 20)

    def detect_in_rois(x: Tensor, d: Tensor, p: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        return fastdet.roi_detections(x, d, p, c, s, (1, 1, 1, 1), 0.3, 0.5, 20)

    def sample(index: Tensor) -> tuple[Tensor, ...]:
        return fastdet.sample_matches(index, 16, 0.5, torch.Generator().manual_seed(6))

    def crop(m: Tensor, b: Tensor, i: Tensor) -> Tensor:
        return fastdet.crop_masks(m, b, i, (3, 2))

    def paste(m: Tensor, b: Tensor) -> Tensor:
        return fastdet.paste_masks(m, b, (30, 44))

    def find_pasted_edges(m: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.fastdet.pasted_mask_edges(m, b, 30, 44, 0.5)

    matched = (integers(0, 2, 2, 3, 50, 70) > 0, torch.stack([rows, others]), integers(-1, 3, 2, n))
    class_masks, class_labels = noise(2, n, 2, 3, 3), integers(0, 2, 2, n)
    probabilities = noise(n, 5, 5).sigmoid()
    channels_last = features.to(memory_format=torch.channels_last)
    image_sizes, counts = torch.tensor([[60, 80], [50, 90]]), torch.tensor([n, n - n // 3])
    two_images = torch.stack([deltas, -deltas])
    map_shapes = [(6, 8), (3, 4)]
    pixels, points = noise(2, 60, 2, 5), noise(2, n, 2, 2, 3, 2) * 0.5 + 0.5
    point_weights = noise(2, n, 2, 2, 3, seed=7)

    def attend(softmax: bool) -> Callable[..., Tensor]:
        return lambda v, p, w: fastdet.ms_deform_attn(v, map_shapes, p, w, softmax)

    def convolve(x: Tensor, o: Tensor, w: Tensor, b: Tensor, m: Tensor) -> Tensor:
        return fastdet.deform_conv2d(x, o, w, b, mask=m)  # 2 groups, 2 offset groups

    table = {
        "rpn_proposals": Call(
            propose, (torch.stack([scores, -scores]), two_images, rows, image_sizes)
        ),
        "retinanet_detections": Call(
            detect, (torch.stack([logits, -logits]), two_images, rows, image_sizes)
        ),
        "roi_detections": Call(
            detect_in_rois,
            (
                torch.stack([logits, -logits]),
                two_images[:, :, None].repeat(1, 1, 6, 1),
                torch.stack([rows, others]),
                counts,
                image_sizes,
            ),
        ),
        "nms": Call(lambda b, s: fastdet.nms(b, s, 0.4), (rows, scores)),
        "batched_nms": Call(lambda b, s, i: fastdet.batched_nms(b, s, i, 0.4), (rows, scores, ids)),
        "nms_padded": Call(
            lambda b, s, i, c: fastdet.nms_padded(b, s, 0.4, 20, i, c),
            (
                torch.stack([rows, others]),
                torch.stack([scores, -scores]),
                torch.stack([ids, ids]),
                counts,
            ),
        ),
        "nmm": Call(lambda b, s, i: fastdet.nmm(b, s, i, 0.4, "ios"), (rows, scores, ids)),
        "nmm, transitive": Call(
            lambda b, s, i: fastdet.nmm(b, s, i, 0.4, transitive=True), (rows, scores, ids)
        ),
        "soft_nms": Call(
            lambda b, s, i: fastdet.soft_nms(b, s, method="gaussian", labels=i),
            (rows, scores.abs(), ids),
        ),
        "weighted_boxes_fusion": Call(
            lambda b, s, i, m: fastdet.weighted_boxes_fusion(b, s, i, m, [1.0, 2.0, 0.5]),
            (rows, scores.sigmoid(), ids, integers(0, 3, n)),
        ),
        "match_anchors, anchor_best": Call(match("anchor_best"), (rows, gts, gt_counts)),
        "match_anchors, gt_best": Call(match("gt_best"), (rows, gts, gt_counts)),
        "sample_matches": Call(sample, (matches,)),
        "assign_atss": Call(
            lambda a, g, c: fastdet.assign_atss(a, [n - n // 3, n // 3], g, c),
            (rows, gts, gt_counts),
        ),
        "assign_simota": Call(
            fastdet.assign_simota,
            (
                predicted,
                two_of_each,
                rows[:, :2] + 9,
                4 + others[:, 0].abs(),
                gt_labels,
                gts,
                gt_counts,
            ),
        ),
        "assign_task_aligned": Call(
            fastdet.assign_task_aligned,
            (predicted, two_of_each, rows[:, :2] + 9, gt_labels, gts, gt_counts),
        ),
        "linear_assignment": Call(
            fastdet.linear_assignment, (noise(n, 4, 6), integers(0, 6, n), integers(0, 8, n))
        ),
        "match_queries": Call(
            fastdet.match_queries,
            (
                noise(n, 2, 6, 5),
                noise(n, 2, 6, 4, seed=7).sigmoid(),
                integers(0, 5, 2, 3),
                noise(2, 3, 4).sigmoid(),
                torch.tensor([3, 1]),
            ),
        ),
        "encode_boxes": Call(fastdet.encode_boxes, (rows, others)),
        "decode_boxes": Call(
            lambda d, a, s: fastdet.decode_boxes(d, a, sizes=s), (deltas, rows, sizes), True
        ),
        "focal loss of labels": Call(fastdet.sigmoid_focal_loss, (logits, labels), True),
        "focal loss": Call(
            lambda x, t: fastdet.sigmoid_focal_loss(x, t, gamma=1.5),
            (logits, logits.sigmoid()),
            True,
        ),
        "focal loss, summed": Call(
            lambda x, t: fastdet.sigmoid_focal_loss(x, t, reduction="sum"), (logits, labels), True
        ),
        "roi_align": Call(pool, (features, rois_of(rows)), True),
        "roi_align, channels_last": Call(pool, (channels_last, rois_of(rows)), True),
        "roi_align, adaptive": Call(pool_adaptively, (features, rois_of(rows)), True),
        "multiscale_roi_align": Call(
            pool_levels, (*pyramid, torch.stack([rows, others]), counts), True
        ),
        "ms_deform_attn": Call(attend(False), (pixels, points, point_weights), True),
        "ms_deform_attn, softmax": Call(attend(True), (pixels, points, point_weights), True),
        "deform_conv2d": Call(
            convolve,
            (
                noise(n, 6, 1, 3),
                noise(n, 8, 1, 2, seed=7),
                noise(4, 3, 1, 2) * 0.1,
                noise(4),
                noise(n, 4, 1, 2, seed=8),
            ),
            True,
        ),
        "crop_masks": Call(crop, matched),
        "mask_rcnn_loss": Call(fastdet.mask_rcnn_loss, (class_masks, class_labels, *matched), True),
        "paste_masks": Call(paste, (probabilities, rows * 0.5)),
        "pasted_mask_edges": Call(find_pasted_edges, (probabilities, rows * 0.5)),
        "mask_edges": Call(torch.ops.fastdet.mask_edges, (noise(n, 6, 7) > 0,)),
    }
    for kind in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        table[kind] = Call(getattr(fastdet, kind), (rows, few), True)
        if kind != "box_iou":
            table[f"{kind}_loss"] = Call(getattr(fastdet, f"{kind}_loss"), (rows, others), True)
    return table


NAMES = list(calls(1))
ON_CUDA = [name for name in NAMES if name != "weighted_boxes_fusion"]  # this one is for CPUs alone


def bits(call: Call) -> list[Tensor]:
    """Outputs, then the gradient of the first tensor. There must be no NaN, because NaN != NaN."""
    tensors = [t.detach() for t in call.tensors]
    if call.differentiable:
        tensors[0].requires_grad_()
    outputs = call.run(*tensors)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if call.differentiable:
        total = outputs[0].sum() + (outputs[0] * outputs[0].detach()).sum()
        outputs += torch.autograd.grad(total, tensors[:1])
    return [output.detach() for output in outputs]


def assert_same_bits(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.equal(b)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = _native.cpu_isa()
    _native.set_cpu_isa(name)
    try:
        yield
    finally:
        _native.set_cpu_isa(before)


def spread(tensor: Tensor) -> Tensor:
    """The same values in every second element of a larger storage."""
    wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the strides of the dimensions reversed."""
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def shifted(tensor: Tensor) -> Tensor:
    """The same values, starting one element after an aligned address."""
    storage = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    view = storage[1:].as_strided(tensor.shape, tensor.stride(), 1)
    return view.copy_(tensor)


# Operators that are not in the table, and why. The test below fails for an operator in neither.
EXEMPT = {
    "upsample_nearest": "a network layer for the CPU alone; see test_upsample_nearest.py",
    "max_pool2d": "a network layer for the CPU alone; see test_max_pool.py",
    "max_pool2d_with_argmax": "a network layer for the CPU alone; see test_max_pool.py",
    "max_pool2d_backward": "a network layer for the CPU alone; see test_max_pool.py",
    "quantize_map": "a network layer for the CPU alone; see test_quantize_map.py",
    "winograd_filters": "a network layer for the CPU alone; see test_winograd.py",
    "winograd_filters_turned": "a network layer for the CPU alone; see test_winograd.py",
    "winograd_conv": "a network layer for the CPU alone; see test_winograd.py",
    "winograd_filters_grad": "a network layer for the CPU alone; see test_winograd.py",
    "winograd_conv_int8": "a network layer for the CPU alone; see test_winograd_int8.py",
    "multiscale_roi_align_add_grad": "for the CPU alone; see test_roi_align.py",
    "sigmoid_focal_loss_sum_and_grad": "for GPUs alone; see test_sigmoid_focal_loss.py",
    "sigmoid_focal_loss_correct_grad": "for GPUs alone; see test_sigmoid_focal_loss.py",
}


class Recorder(TorchDispatchMode):
    """Records the fastdet operators that run in its context, also backward ones: the last calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Callable[..., object], list[object]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastdet":
            assert not kwargs
            self.calls[func.__name__.partition(".")[0]] = func, list(args)
        return func(*args, **(kwargs or {}))


def registered_operators() -> set[str]:
    """All operators that csrc/ops.cpp defines."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("fastdet::") for name in names if name.startswith("fastdet::")}


def test_every_registered_operator_is_in_the_table():
    with Recorder() as recorder:
        for call in calls(2).values():
            bits(call)
    assert recorder.calls.keys() | EXEMPT.keys() == registered_operators()
    assert not recorder.calls.keys() & EXEMPT.keys()


# ---- devices -------------------------------------------------------------------------------------


def network_calls() -> None:
    """The operators that the table leaves out, each with all its tensors."""
    maps, weight = noise(1, 3, 4, 4), noise(5, 3, 3, 3)
    filters = winograd_filters(weight, noise(5))
    winograd_conv(maps, filters, noise(5), noise(1, 5, 4, 4), 5, "relu")
    winograd_filters_turned(weight)
    winograd_filters_grad(noise(1, 5, 4, 4), maps)
    upsample_nearest(maps, 8, 8)
    q, five = quantize_map(maps, 0.1, 128), noise(5)
    small = winograd_filters_int8(weight.to(torch.int8))
    added = quantize_map(noise(1, 5, 4, 4), 0.1, 128)
    roundings = winograd_roundings_int8(noise(16, 2), 0.1)
    arguments = roundings, small, five, five, "relu", torch.float32
    winograd_conv_int8(q, 128, *arguments, summand=added)
    max_pool2d(maps, (2, 2), (2, 2), (0, 0))
    max_pool2d(maps.requires_grad_(), (2, 2), (2, 2), (0, 0)).sum().backward()


def gpu_calls() -> None:
    """Operators for GPUs alone: torch finds no kernel for the CPU, after it has seen the call."""
    logits, labels, number = noise(3, 4), integers(-1, 4, 3), noise(1)[0]
    rest = (logits, labels, number, 0.25, 2.0)
    with pytest.raises(NotImplementedError, match="sigmoid_focal_loss_sum_and_grad"):
        torch.ops.fastdet.sigmoid_focal_loss_sum_and_grad(*rest)
    with pytest.raises(NotImplementedError, match="sigmoid_focal_loss_correct_grad"):
        torch.ops.fastdet.sigmoid_focal_loss_correct_grad(noise(3, 4), number, *rest)


def add_gradients_of_pooled_rois() -> None:
    sums = [noise(2, 5, n, n).to(memory_format=torch.channels_last) for n in (8, 4)]
    rois, counts = boxes(6).reshape(2, 3, 4), torch.tensor([3, 1])
    add_multiscale_grad(sums, noise(2, 3, 5, 2, 2), rois, counts, [0.25, 0.125])


@lru_cache(maxsize=1)
def operator_calls() -> dict[str, tuple[Callable[..., object], list[object]]]:
    """A call of every registered operator, with a tensor wherever its schema takes one."""
    with Recorder() as recorder:
        for call in calls(2).values():
            bits(call)
        network_calls()
        add_gradients_of_pooled_rois()
        gpu_calls()
    return recorder.calls


def meta_arguments(arguments: list[object]) -> Iterator[list[object]]:
    """The arguments with one tensor on the meta device, for each tensor, also those in lists."""
    for i, argument in enumerate(arguments):
        before, after = arguments[:i], arguments[i + 1 :]
        if isinstance(argument, Tensor):
            yield [*before, argument.to("meta"), *after]
        elif isinstance(argument, (list, tuple)):
            for items in meta_arguments(list(argument)):
                yield [*before, items, *after]


ONE_TENSOR = (
    "mask_edges",
    "winograd_filters_turned",
    "upsample_nearest",
    "quantize_map",
    "max_pool2d",
    "max_pool2d_with_argmax",
)


@pytest.mark.parametrize("name", sorted(registered_operators() - {*ONE_TENSOR}))
def test_an_operator_refuses_tensors_on_several_devices(name):
    op, arguments = operator_calls()[name]
    assert all(argument is not None for argument in arguments)
    mixed = list(meta_arguments(arguments))
    assert len(mixed) > 1
    expected = rf"^fastdet::{name}: \w+: expected the device of the first argument, \w+, got .* on"
    for some_on_meta in mixed:
        with pytest.raises(RuntimeError, match=expected):
            op(*some_on_meta)


def test_an_operator_names_the_tensor_on_another_device():
    expected = (
        "fastdet::box_iou: boxes2: expected the device of the first argument, cpu, "
        r"got float32 \(3, 4\) on meta"
    )
    with pytest.raises(RuntimeError, match=expected):
        fastdet.box_iou(boxes(2), boxes(3).to("meta"))


@pytest.mark.parametrize("name", [name for name in NAMES if len(calls(1)[name].tensors) > 1])
def test_a_public_function_refuses_tensors_on_several_devices(name):
    call = calls(2)[name]
    for tensors in meta_arguments(list(call.tensors)):
        with pytest.raises(RuntimeError, match="expected the device of the first argument"):
            call.run(*tensors)


@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_matter(name):
    # Enough rows to split the work of every operator into several pieces.
    n = 700 if "roi" in name or "nms" in name or "nmm" in name else 40_000
    call = calls(n)[name]
    with threads(1):
        expected = bits(call)
    for n in (2, 3, 5):
        with threads(n):
            assert_same_bits(bits(call), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lay_out", [spread, transposed, shifted])
def test_layout_does_not_matter(name, lay_out):
    call = calls(65)[name]
    moved = call._replace(tensors=tuple(lay_out(t) for t in call.tensors))
    assert all(a.equal(b) for a, b in zip(moved.tensors, call.tensors, strict=True))
    got, expected = bits(moved), bits(call)
    if "roi" in name:  # channels_last and NCHW add in different orders
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    else:
        assert_same_bits(got, expected)


HEADS = ("rpn_proposals", "retinanet_detections", "roi_detections")
BATCHED = (
    "nms_padded",
    "multiscale_roi_align",
    "ms_deform_attn",
    "ms_deform_attn, softmax",
    "sample_matches",
    "assign_atss",
    "assign_simota",
    "assign_task_aligned",
    "crop_masks",
    "mask_rcnn_loss",
)


# In the other operators the rows are not the first dimension.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*HEADS, *BATCHED)])
def test_expanded_inputs(name):
    call = calls(1)[name]
    rows = {"roi_align": (1,), "roi_align, channels_last": (1,), "roi_align, adaptive": (1,)}
    rows["match_queries"] = (0, 1)
    rows["deform_conv2d"] = (0, 1, 4)
    repeated = rows.get(name, range(len(call.tensors)))
    if name.startswith("match_anchors"):
        repeated = (0,)
    if name.endswith("box_iou"):
        repeated = (0,)

    def tensors(repeat: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return tuple(repeat(t) if i in repeated else t for i, t in enumerate(call.tensors))

    expanded = call._replace(tensors=tensors(lambda t: t.expand(17, *t.shape[1:])))
    copied = call._replace(tensors=tensors(lambda t: t.repeat(17, *[1] * (t.dim() - 1))))
    differentiable = call.differentiable and "roi" in name
    assert_same_bits(
        bits(expanded._replace(differentiable=differentiable)),
        bits(copied._replace(differentiable=differentiable)),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", _native.usable_cpu_isas())
def test_instruction_sets_agree(name, isa):
    call = calls(333)[name]
    expected = bits(call)
    with instruction_set(isa):
        got = bits(call)
    for a, b in zip(got, expected, strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        else:
            assert a.equal(b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(name, n):
    for output in bits(calls(n)[name]):
        assert not output.is_floating_point() or output.isfinite().all()


def poisoned(rows: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """A copy with the value in one coordinate of every third row; and a mask of unchanged rows."""
    rows = rows.clone()
    hit = torch.arange(len(rows)) % 3 == 1
    columns = torch.arange(len(rows)) % rows.shape[1]
    if rows.shape[1] == 5:  # RoIs: keep the batch index
        columns = 1 + columns % 4
    rows[hit, columns[hit]] = value
    return rows, ~hit


VALUES = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e38]
BY_ROW = [
    ("box_iou", 0),
    ("generalized_box_iou", 0),
    ("distance_box_iou", 0),
    ("complete_box_iou", 0),
    ("generalized_box_iou_loss", 0),
    ("distance_box_iou_loss", 0),
    ("complete_box_iou_loss", 0),
    ("encode_boxes", 0),
    ("encode_boxes", 1),
    ("decode_boxes", 0),
    ("decode_boxes", 1),
    ("focal loss of labels", 0),
    ("roi_align", 1),
    ("roi_align, channels_last", 1),
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("name", "position"), BY_ROW)
def test_bad_rows_leave_the_others_alone(name, position, value):
    call = calls(50)[name]
    tensors = list(call.tensors)
    tensors[position], untouched = poisoned(tensors[position], value)
    got = call.run(*tensors)
    expected = call.run(*call.tensors)
    assert isinstance(got, Tensor)
    assert isinstance(expected, Tensor)
    assert got[untouched].equal(expected[untouched])
    if "roi" in name:
        assert got.isfinite().all()


@pytest.mark.parametrize("value", VALUES)
def test_bad_boxes_suppress_nothing(value):
    boxes, scores, ids = calls(200)["batched_nms"].tensors
    bad, untouched = poisoned(boxes, value)
    rows = untouched.nonzero().squeeze(1)
    keep = fastdet.nms(bad, scores, 0.4)
    assert keep[untouched[keep]].equal(rows[fastdet.nms(boxes[rows], scores[rows], 0.4)])
    keep = fastdet.batched_nms(bad, scores, ids, 0.4)
    expected = fastdet.batched_nms(boxes[rows], scores[rows], ids[rows], 0.4)
    assert keep[untouched[keep]].equal(rows[expected])


@pytest.mark.parametrize("value", VALUES)
def test_bad_anchors_and_gts_match_nothing(value):
    anchors, gts = boxes(300), boxes(6, seed=4)
    counts = torch.tensor([6])
    bad_anchors, untouched = poisoned(anchors, value)
    index, iou = fastdet.match_anchors(bad_anchors, gts[None], counts, 0.5, 0.3, "none")
    expected, expected_iou = fastdet.match_anchors(anchors, gts[None], counts, 0.5, 0.3, "none")
    assert index[:, untouched].equal(expected[:, untouched])
    assert iou[:, untouched].equal(expected_iou[:, untouched])
    assert (index[:, ~untouched] < 0).all()

    bad_gts, good = poisoned(gts, value)
    index, iou = fastdet.match_anchors(anchors, bad_gts[None], counts, 0.5, 0.3, "none")
    rows = good.nonzero().squeeze(1)
    fewer = torch.tensor([len(rows)])
    expected, expected_iou = fastdet.match_anchors(
        anchors, gts[rows][None], fewer, 0.5, 0.3, "none"
    )
    # A huge finite box has some IoUs that are tiny, not 0.
    torch.testing.assert_close(iou, expected_iou, rtol=0, atol=1e-20)
    assert index.equal(torch.where(expected >= 0, rows[expected.clamp(min=0)], expected))


# ---- 2^20 rows ----------------------------------------------------------------------------------


def test_nms_of_a_million_boxes():
    """Clusters of four equal boxes, far from each other: the best box of each is kept."""
    corners = torch.arange(BIG // 4)
    low = torch.stack([corners % 512, corners // 512], 1).repeat(4, 1) * 10.0
    clusters = torch.cat([low, low + 8], 1)
    scores = torch.randperm(BIG, generator=torch.Generator().manual_seed(0)).float()
    best = scores.reshape(4, -1).argmax(0) * (BIG // 4) + corners
    expected = best[scores[best].argsort(descending=True)]
    assert fastdet.nms(clusters, scores, 0.5).equal(expected)
    groups = torch.arange(4).repeat_interleave(BIG // 4) * 2**60
    keep = fastdet.batched_nms(clusters, scores, groups, 0.5)
    assert keep.equal(scores.argsort(descending=True))
    padded, counts = fastdet.nms_padded(clusters[None], scores[None], 0.5, 1000)
    assert padded[0].equal(expected[:1000])
    assert counts.tolist() == [1000]


def test_matching_a_million_anchors():
    anchors, gts = boxes(BIG, extent=1000), boxes(5, seed=4, extent=1000)
    index, iou = fastdet.match_anchors(anchors, gts[None], torch.tensor([5]), 0.5, 0.3, "none")
    best, best_gt = fastdet.box_iou(gts, anchors).max(0)
    assert iou[0].equal(best)
    expected = torch.where(best >= 0.5, best_gt, torch.where(best >= 0.3, -2, -1))
    assert index[0].equal(expected)
    sampled, valid = fastdet.sample_matches(index, 256, 0.5, torch.Generator().manual_seed(0))
    positive = min(128, int((index >= 0).sum()))
    assert valid.all()
    assert (index.gather(1, sampled)[0, :positive] >= 0).all()
    assert (index.gather(1, sampled)[0, positive:] == -1).all()


ROW_BY_ROW = [
    "box_iou",
    "complete_box_iou",
    "generalized_box_iou_loss",
    "encode_boxes",
    "decode_boxes",
    "focal loss of labels",
    "roi_align",
]


# Rows that repeat cost less than a million random ones. The period is prime: an index that is wrong
# by a power of two is that of another row.
PERIOD = 4099
MILLION = 256 * PERIOD


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_million_rows_equal_the_same_rows_in_pieces(name):
    call = calls(PERIOD)[name]
    tensors = call.tensors
    if name == "roi_align":
        tensors = noise(2, 1, 24, 40), tensors[1]

    def run(*tensors: Tensor) -> Tensor:
        if name == "roi_align":
            return fastdet.roi_align(*tensors, 1, 0.25, 1)
        output = call.run(*tensors)
        assert isinstance(output, Tensor)
        return output

    def rows(tensor: Tensor, begin: int, end: int) -> Tensor:
        return tensor[torch.arange(begin, end) % PERIOD] if len(tensor) == PERIOD else tensor

    whole = run(*(rows(t, 0, MILLION) for t in tensors))
    for begin in (0, 12_345, MILLION - 999):
        piece = run(*(rows(t, begin, begin + 999) for t in tensors))
        assert whole[begin : begin + 999].equal(piece)
