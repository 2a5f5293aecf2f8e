# SPDX-License-Identifier: BSD-3-Clause
"""Mask R-CNN's masks: targets and loss in training, pasted pixels and run lengths in inference.

Beside torchvision and pycocotools; see masks.py.
"""

import torch
from torch import Tensor

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.masks import (
    BINS,
    CLASSES,
    HEIGHT,
    WIDTH,
    MaskTargets,
    mask_outputs,
    mask_targets,
    matched,
    pycocotools_rles,
    torchvision_crops,
    torchvision_loss,
    torchvision_pasted,
)
from benchmarks.workloads import gradients, seeded

# A bilinear sample along both axes: two differences, two products, two sums, and a comparison.
OPERATIONS_OF_PIXEL = 4


def pixels_read(targets: MaskTargets) -> int:
    """Bytes of masks under the boxes."""
    size = torch.tensor([WIDTH, HEIGHT] * 2)
    inside = matched(targets.boxes).clamp(min=0).minimum(size)
    sides = (inside[..., 2:] - inside[..., :2]).clamp(min=0) + 1
    return int(sides.prod(-1).sum())


def bench_crop(beside: Beside) -> None:
    t = mask_targets(beside.size(512))
    read, rows = pixels_read(t), matched(t.match).numel()
    beside(
        Case(
            op="crop_masks",
            workload=f"{rows} boxes, {BINS} x {BINS}, masks of {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.crop_masks(t.masks, t.boxes, t.match, BINS),
                "torchvision": lambda: torchvision_crops(t.masks, t.boxes, t.match),
            },
            floor=stream(reads=read, writes=4 * t.match.numel() * BINS**2),
            operations=read,
        )
    )


def bench_loss(beside: Beside) -> None:
    t = mask_targets(beside.size(512))
    shape = (*t.match.shape, CLASSES, BINS, BINS)
    logits = torch.randn(shape, generator=seeded(4)).requires_grad_()
    of_rows = matched(logits.detach()).flatten(0, 1).requires_grad_()

    def theirs() -> Tensor:
        return torchvision_loss(of_rows, t.masks, t.boxes, t.match, t.gt_labels)

    beside(
        Case(
            op="mask_rcnn_loss",
            workload=f"{t.match.numel()} boxes, half matched, {CLASSES} classes, "
            "forward and backward",
            sides={
                "fastdet": gradients(
                    lambda: fastdet.mask_rcnn_loss(logits, t.labels, t.masks, t.boxes, t.match),
                    [logits],
                ),
                "torchvision": gradients(theirs, [of_rows]),
            },
            floor=stream(reads=pixels_read(t), writes=logits.nbytes),
            operations=pixels_read(t),
        )
    )


def bench_paste(beside: Beside) -> None:
    masks, boxes = mask_outputs(beside.size(100))
    pixels = int((boxes[:, 2:] - boxes[:, :2]).prod(1).sum())
    beside(
        Case(
            op="paste_masks",
            workload=f"{len(masks)} masks of {BINS} x {BINS} into {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.paste_masks(masks, boxes, (HEIGHT, WIDTH)),
                "torchvision": lambda: torchvision_pasted(masks, boxes),
            },
            floor=stream(reads=masks.nbytes, writes=len(masks) * HEIGHT * WIDTH),
            operations=OPERATIONS_OF_PIXEL * pixels,
        )
    )


def bench_paste_rle(beside: Beside) -> None:
    masks, boxes = mask_outputs(beside.size(100))
    columns = int((boxes[:, 2] - boxes[:, 0]).sum())
    beside(
        Case(
            op="paste_masks_rle",
            workload=f"{len(masks)} masks of {BINS} x {BINS} in {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.paste_masks_rle(masks, boxes, (HEIGHT, WIDTH)),
                "torchvision": lambda: pycocotools_rles(torchvision_pasted(masks, boxes)),
            },
            operations=OPERATIONS_OF_PIXEL * columns * BINS,
        )
    )


def bench_encode(beside: Beside) -> None:
    masks = fastdet.paste_masks(*mask_outputs(beside.size(100)), (HEIGHT, WIDTH))
    beside(
        Case(
            op="encode_masks",
            workload=f"{len(masks)} masks of {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.encode_masks(masks),
                "torchvision": lambda: pycocotools_rles(masks),
            },
            floor=stream(reads=masks.nbytes),
        )
    )
