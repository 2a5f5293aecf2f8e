# SPDX-License-Identifier: BSD-3-Clause
"""The operators on a GPU: the goals of docs/kernels.md, and the operators beside them.

Those on masks are in masks.py.

A function makes the cases of its subject; `cases` chains them, each made when its turn comes, so
that the inputs of one do not lie in memory while another is measured.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder

import fastdet
from benchmarks import torchvision_heads
from benchmarks.alternate import Side
from benchmarks.gpu.case import GpuCase, Prepare, forward
from benchmarks.gpu.device import Device
from benchmarks.torchvision_heads import BOX_HEAD_WEIGHTS, RPN_NUMBERS
from benchmarks.workloads import (
    RETINANET_SIZES,
    Head,
    backward,
    box_head,
    gradients,
    head,
    random_boxes,
    scene,
    seeded,
)
from fastdet.models.anchors import cell_anchors, pyramid_anchors

deterministic: Any = torch.utils.deterministic

TWENTY_TIMES = 20.0  # the goal of matching: docs/kernels.md

Cases = Iterator[GpuCase]


# ---- suppression --------------------------------------------------------------------------------


def nms(device: Device) -> Cases:
    """One wait for the host, at the end: how many boxes remain depends on them."""
    for n, target_ms in ((1_000, 0.05), (10_000, 0.15), (100_000, 0.5)):
        n = device.size(n)
        yield GpuCase(
            op="nms",
            workload=f"{n:,} random boxes",
            inputs=(random_boxes(n, 1000, 1000, 100), torch.rand(n, generator=seeded(1))),
            sides={
                "fastdet": forward(lambda b, s: fastdet.nms(b, s, 0.5)),
                "torchvision": forward(lambda b, s: torchvision.ops.nms(b, s, 0.5)),
            },
            exact=lambda b, s: fastdet.nms(b.cpu(), s.cpu(), 0.5).to(b.device),
            target_ms=target_ms,
        )


def batched_nms(device: Device) -> Cases:
    n = device.size(20_000)
    ids = torch.randint(0, 80, (n,), generator=seeded(2))
    yield GpuCase(
        op="batched_nms",
        workload=f"{n:,} boxes, 80 classes",
        inputs=(random_boxes(n, 1000, 1000, 100), torch.rand(n, generator=seeded(1)), ids),
        sides={
            "fastdet": forward(lambda b, s, i: fastdet.batched_nms(b, s, i, 0.5)),
            "torchvision": forward(lambda b, s, i: torchvision.ops.batched_nms(b, s, i, 0.5)),
        },
        exact=lambda b, s, i: fastdet.batched_nms(b.cpu(), s.cpu(), i.cpu(), 0.5).to(b.device),
    )


def nms_padded(device: Device) -> Cases:
    n, most = device.size(5_000), device.size(1_000)
    images = [scene(n, objects=max(1, n // 50), seed=image) for image in range(2)]

    def one_by_one(boxes: Tensor, scores: Tensor) -> list[Tensor]:
        return [torchvision.ops.nms(b, s, 0.5)[:most] for b, s in zip(boxes, scores, strict=True)]

    yield GpuCase(
        op="nms_padded",
        workload=f"2 images, {n:,} boxes about {n // 50:,} objects, the best {most:,}",
        inputs=tuple(torch.stack(parts) for parts in zip(*images, strict=True)),
        sides={
            "fastdet": forward(lambda b, s: fastdet.nms_padded(b, s, 0.5, most)),
            "torchvision": forward(one_by_one),
        },
        exact=lambda b, s: one_by_one(b.double(), s.double()),
        compared=lambda found: [
            rows[:count] for rows, count in zip(found[0], found[1].tolist(), strict=True)
        ],
    )


# ---- RoIAlign -----------------------------------------------------------------------------------

BINS, RATIO = 7, 2
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def image_size(device: Device) -> tuple[int, int]:
    return (64, 96) if device.small else (800, 1216)


def boxes_on_image(n: int, device: Device) -> Tensor:
    height, width = image_size(device)
    return random_boxes(n, 0.75 * width, 0.75 * height, 0.33 * width, seed=9)


def pyramid(device: Device, layout: str, dtype: torch.dtype) -> list[Tensor]:
    """Four levels of one image."""
    height, width = image_size(device)
    channels = 8 if device.small else 256
    return [
        torch.randn(1, channels, int(height * s), int(width * s), generator=seeded(8))
        .to(dtype)
        .contiguous(memory_format=LAYOUTS[layout])
        for s in SCALES
    ]


def our_levels(*inputs: Tensor) -> Tensor:
    *levels, boxes = inputs
    pooled = fastdet.multiscale_roi_align(levels, boxes[None], None, BINS, SCALES, RATIO)
    return pooled.flatten(0, 1)


def their_levels(device: Device) -> Callable[..., Tensor]:
    pooler = torchvision.ops.MultiScaleRoIAlign([str(i) for i in range(len(SCALES))], BINS, RATIO)
    size = image_size(device)

    def run(*inputs: Tensor) -> Tensor:
        *levels, boxes = inputs
        # Its kernel has no bfloat16; under autocast it converts as here.
        dtype = levels[0].dtype
        wide = [x.float() if dtype == torch.bfloat16 else x for x in levels]
        named = {str(i): level for i, level in enumerate(wide)}
        return pooler(named, [boxes.to(wide[0].dtype)], [size]).to(dtype)

    return run


def backward_of(function: Callable[..., Tensor], levels: int, ordered: bool = False) -> Prepare:
    """The gradients of the first inputs, again and again for one forward."""

    def prepare(*inputs: Tensor) -> Side:
        leaves = [x.detach().requires_grad_() for x in inputs[:levels]]
        run = backward(lambda: function(*leaves, *inputs[levels:]), leaves)
        return deterministically(run) if ordered else run

    return prepare


def deterministically(run: Side) -> Side:
    """Tells torch so in each call, but not to fill new memory with NaN, which is for debugging."""

    def side() -> Any:
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False
        try:
            return run()
        finally:
            torch.use_deterministic_algorithms(False)

    return side


def multiscale_roi_align(device: Device) -> Cases:
    """1000 RoIs of one image's pyramid; the floor reads all of the pyramid."""
    n, theirs = device.size(1000), their_levels(device)
    for layout, dtype, target_ms in (
        ("channels_last", torch.bfloat16, 0.1),
        ("channels_last", torch.float32, None),
        ("NCHW", torch.float32, None),
    ):
        levels = pyramid(device, layout, dtype)
        inputs = (*levels, boxes_on_image(n, device))
        values = n * levels[0].size(1) * BINS**2
        moved = sum(x.nbytes for x in levels) + values * levels[0].element_size()
        name = f"4 levels, {n:,} RoIs, {layout}, {str(dtype).removeprefix('torch.')}"

        def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(t.double() for t in tensors)

        yield GpuCase(
            op="multiscale_roi_align",
            workload=name,
            inputs=inputs,
            sides={"fastdet": forward(our_levels), "torchvision": forward(theirs)},
            bytes=moved,
            exact=lambda *tensors: theirs(*wide(*tensors)),
            target_ms=target_ms,
        )
        for ordered in (False, True):
            yield GpuCase(
                op="multiscale_roi_align",
                workload=f"{name}, {'deterministic ' if ordered else ''}backward",
                inputs=inputs,
                sides={
                    "fastdet": backward_of(our_levels, len(levels), ordered),
                    "torchvision": backward_of(theirs, len(levels)),
                },
                bytes=moved,
                exact=lambda *tensors: backward_of(theirs, len(SCALES))(*wide(*tensors))(),
            )


def roi_align(device: Device) -> Cases:
    n = device.size(1000)
    rois = torch.nn.functional.pad(boxes_on_image(n, device), (1, 0))
    for layout in LAYOUTS:
        features = pyramid(device, layout, torch.float32)[0]
        yield GpuCase(
            op="roi_align",
            workload=f"{n:,} RoIs, {features.size(1)} x {BINS} x {BINS}, {layout}",
            inputs=(features, rois),
            sides={
                "fastdet": forward(lambda x, r: fastdet.roi_align(x, r, BINS, 1 / 4, RATIO)),
                "torchvision": forward(
                    lambda x, r: torchvision.ops.roi_align(x, r, BINS, 1 / 4, RATIO)
                ),
            },
            bytes=features.nbytes + 4 * n * features.size(1) * BINS**2,
            exact=lambda x, r: torchvision.ops.roi_align(
                x.double(), r.double(), BINS, 1 / 4, RATIO
            ),
        )


# ---- overlap, matching, coding ------------------------------------------------------------------


def rpn_anchors(device: Device) -> Tensor:
    """Those of five levels over 800 x 1344 pixels, three at each place: 268,569."""
    height, width = (64, 96) if device.small else (800, 1344)
    maps = [torch.empty(1, 1, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64)]
    cells = cell_anchors([(s,) for s in (32, 64, 128, 256, 512)])
    return pyramid_anchors(torch.empty(1, 3, height, width), maps, cells)


def box_iou(device: Device) -> Cases:
    anchors, gt_boxes = rpn_anchors(device), random_boxes(100, 1216, 800, 300, seed=3)
    for op in ("box_iou", "generalized_box_iou", "complete_box_iou"):
        theirs = getattr(torchvision.ops, op)
        yield GpuCase(
            op=op,
            workload=f"100 x {len(anchors):,}",
            inputs=(gt_boxes, anchors),
            sides={"fastdet": forward(getattr(fastdet, op)), "torchvision": forward(theirs)},
            bytes=anchors.nbytes + 4 * len(anchors) * 100,
            exact=lambda a, b, theirs=theirs: theirs(a.double(), b.double()),
            target_ms=0.04 if op == "box_iou" else None,
        )


def match_anchors(device: Device) -> Cases:
    anchors = rpn_anchors(device)
    for num_gts in (30, 100):
        gt_boxes = random_boxes(num_gts, 1216, 800, 300, seed=3)
        yield GpuCase(
            op="match_anchors",
            workload=f"{len(anchors):,} RPN anchors, {num_gts} gt",
            inputs=(anchors, gt_boxes, torch.tensor([num_gts])),
            sides={
                "fastdet": forward(lambda a, g, c: fastdet.match_anchors(a, g[None], c, 0.7, 0.3)),
                "torchvision": forward(
                    lambda a, g, c: torchvision_heads.match_anchors(a, g, 0.7, 0.3)
                ),
            },
            bytes=anchors.nbytes + 12 * len(anchors),
            exact=lambda a, g, c: torchvision_heads.match_anchors(a.double(), g.double(), 0.7, 0.3),
            compared=lambda found: found[0][0],
            target=TWENTY_TIMES,
            target_ms=0.02 if num_gts == 100 else None,
        )


def sample_matches(device: Device) -> Cases:
    n = device.size(200_000)
    draw = torch.rand(2, n, generator=seeded(10))
    index = torch.where(draw < 0.001, 0, torch.where(draw < 0.051, -2, -1))
    sampler = BalancedPositiveNegativeSampler(256, 0.5)
    yield GpuCase(
        op="sample_matches",
        workload=f"2 images, 256 of {n:,}",
        inputs=(index, torch.where(index == -2, -1, (index >= 0).long())),
        sides={
            "fastdet": forward(lambda index, labels: fastdet.sample_matches(index, 256, 0.5)),
            "torchvision": forward(lambda index, labels: sampler(list(labels))),
        },
        bytes=index.nbytes,
    )


def box_coding(device: Device) -> Cases:
    n, coder = device.size(200_000), BoxCoder((1.0, 1.0, 1.0, 1.0))
    anchors = random_boxes(n, 1216, 800, 300)
    deltas = torch.randn(n, 4, generator=seeded(4)) * 0.2
    both: list[tuple[str, Tensor, Callable[..., Tensor]]] = [
        ("decode_boxes", deltas, coder.decode_single),
        ("encode_boxes", anchors.flip(0), coder.encode_single),
    ]
    for op, first, theirs in both:
        yield GpuCase(
            op=op,
            workload=f"{n:,}",
            inputs=(first, anchors),
            sides={"fastdet": forward(getattr(fastdet, op)), "torchvision": forward(theirs)},
            bytes=48 * n,
            exact=lambda a, b, theirs=theirs: theirs(a.double(), b.double()),
        )


# ---- losses -------------------------------------------------------------------------------------


def loss_and_gradient(loss: Callable[..., Tensor], *positions: int) -> Prepare:
    """The loss of the inputs at the positions, and the gradient of the first input."""

    def prepare(*inputs: Tensor) -> Side:
        leaf = inputs[0].detach().requires_grad_()
        chosen = [leaf if i == 0 else inputs[i] for i in positions]
        return gradients(lambda: loss(*chosen), [leaf])

    return prepare


def sigmoid_focal_loss(device: Device) -> Cases:
    """Ours from labels; torchvision has dense targets alone."""
    n, classes = device.size(200_000), 80
    labels = torch.randint(-1, classes, (n,), generator=seeded(8))
    dense = torch.nn.functional.one_hot(labels + 1, classes + 1)[:, 1:].float()

    def summed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, t: function(x, t, reduction="sum")

    ours, theirs = summed(fastdet.sigmoid_focal_loss), summed(torchvision.ops.sigmoid_focal_loss)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(n, classes, generator=seeded(7)).to(dtype)
        floor = 2 * logits.nbytes + labels.nbytes
        yield GpuCase(
            op="sigmoid_focal_loss",
            workload=f"{n:,} x {classes}, forward and backward, "
            + str(dtype).removeprefix("torch."),
            inputs=(logits, labels, dense.to(dtype)),
            sides={
                "fastdet": loss_and_gradient(ours, 0, 1),
                "torchvision": loss_and_gradient(theirs, 0, 2),
            },
            bytes=floor,
            exact=lambda *t: loss_and_gradient(theirs, 0, 2)(*(x.double() for x in t))(),
            target_ms=0.05 if dtype == torch.float32 else None,  # 1.3 times the floor
        )


def box_iou_loss(device: Device) -> Cases:
    n = device.size(100_000)
    for op in ("generalized_box_iou_loss", "complete_box_iou_loss"):
        ours, theirs = getattr(fastdet, op), getattr(torchvision.ops, op)
        yield GpuCase(
            op=op,
            workload=f"{n:,}, forward and backward",
            inputs=tuple(random_boxes(n, 100, 100, 300, seed=seed) for seed in (5, 6)),
            sides={
                "fastdet": loss_and_gradient(ours, 0, 1),
                "torchvision": loss_and_gradient(theirs, 0, 1),
            },
            bytes=52 * n,
            exact=lambda *t, theirs=theirs: loss_and_gradient(theirs, 0, 1)(
                *(x.double() for x in t)
            )(),
        )


# ---- post-processing ----------------------------------------------------------------------------

IMAGES, LEVELS = 2, 5


def as_head(tensors: Sequence[Tensor]) -> Head:
    """What `Head` was before its lists were joined."""
    parts = (tensors[i : i + LEVELS] for i in range(0, 3 * LEVELS, LEVELS))
    return Head(*(list(part) for part in parts))


def rows_of_images(found: Sequence[Tensor], columns: int) -> list[tuple[Tensor, ...]]:
    """The first columns of a padded result, without its padding."""
    counts = found[-1].tolist()
    return [tuple(x[b, :count] for x in found[:columns]) for b, count in enumerate(counts)]


def rpn_proposals(device: Device) -> Cases:
    size = (128, 128) if device.small else (800, 1216)
    h = head(IMAGES, 1, 4, [(s,) for s in (32, 64, 128, 256, 512)], small=device.small)

    def ours(*tensors: Tensor) -> Side:
        h, sizes = as_head(tensors), tensors[-1]
        logits, anchors = [x.squeeze(2) for x in h.logits], torch.cat(h.anchors)
        return lambda: fastdet.rpn_proposals(logits, h.deltas, anchors, sizes, **RPN_NUMBERS)

    yield GpuCase(
        op="rpn_proposals",
        workload=f"{IMAGES} images of {size[0]} x {size[1]}, 5 levels",
        inputs=(*h.logits, *h.deltas, *h.anchors, torch.tensor([size] * IMAGES)),
        sides={
            "fastdet": ours,
            "torchvision": forward(lambda *t: torchvision_heads.rpn_proposals(as_head(t), size)),
        },
        bytes=sum(x.nbytes for x in h.logits),
        exact=lambda *t: torchvision_heads.rpn_proposals(as_head(t).double(), size),
        compared=lambda found: rows_of_images(found, 2),
    )


def retinanet_detections(device: Device) -> Cases:
    size = (128, 128) if device.small else (800, 1216)
    h = head(IMAGES, 81, 8, RETINANET_SIZES, small=device.small)

    def ours(*tensors: Tensor) -> Side:
        h, sizes = as_head(tensors), tensors[-1]
        anchors = torch.cat(h.anchors)
        return lambda: fastdet.retinanet_detections(
            h.logits, h.deltas, anchors, sizes, 0.05, 1000, 0.5, 300
        )

    def theirs(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
        return torchvision_heads.retinanet_detections(as_head(tensors), size)

    yield GpuCase(
        op="retinanet_detections",
        workload=f"{IMAGES} images of {size[0]} x {size[1]}, 5 levels, 81 classes",
        inputs=(*h.logits, *h.deltas, *h.anchors, torch.tensor([size] * IMAGES)),
        sides={"fastdet": ours, "torchvision": forward(theirs)},
        bytes=sum(x.nbytes for x in h.logits),
        exact=lambda *t: torchvision_heads.retinanet_detections(as_head(t).double(), size),
        compared=lambda found: rows_of_images(found, 3),
    )


def roi_detections(device: Device) -> Cases:
    size, classes = (800, 1216), 91
    outputs = box_head(device.size(1000), classes)

    def ours(logits: Tensor, deltas: Tensor, proposals: Tensor, sizes: Tensor) -> Side:
        return lambda: fastdet.roi_detections(
            logits[None],
            deltas[None],
            proposals[None],
            None,
            sizes,
            BOX_HEAD_WEIGHTS,
            0.05,
            0.5,
            100,
        )

    def theirs(logits: Tensor, deltas: Tensor, proposals: Tensor, _: Tensor) -> list[Tensor]:
        found = torchvision_heads.roi_detections(logits, deltas, proposals, size)
        return [of_images[0] for of_images in found]

    yield GpuCase(
        op="roi_detections",
        workload=f"{len(outputs[0]):,} proposals, {classes} classes",
        inputs=(*outputs, torch.tensor([size])),
        sides={"fastdet": ours, "torchvision": forward(theirs)},
        bytes=outputs[0].nbytes,
        exact=lambda x, d, p, sizes: theirs(x.double(), d.double(), p.double(), sizes),
        compared=lambda found: list(rows_of_images(found, 3)[0]),
    )


SUITES: tuple[Callable[[Device], Cases], ...] = (
    nms,
    batched_nms,
    nms_padded,
    multiscale_roi_align,
    roi_align,
    match_anchors,
    sample_matches,
    box_iou,
    box_coding,
    sigmoid_focal_loss,
    box_iou_loss,
    rpn_proposals,
    retinanet_detections,
    roi_detections,
)
