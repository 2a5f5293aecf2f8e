# SPDX-License-Identifier: BSD-3-Clause
"""The operators on Mask R-CNN's masks on a GPU; their inputs and peers are ../masks.py's.

Run lengths end in the host's memory, and so do both sides: torchvision pastes on the GPU, and
pycocotools gets the pixels. Without pycocotools these two suites are skipped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import fastdet
from benchmarks.alternate import Side
from benchmarks.gpu.case import GpuCase, forward
from benchmarks.gpu.device import Device
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

SIZE = HEIGHT, WIDTH

Cases = Iterator[GpuCase]


def pixels_read(targets: MaskTargets) -> int:
    """Bytes of masks under the boxes; where boxes of one mask overlap, the cache gives them."""
    under = torch.zeros_like(targets.masks)
    corners = matched(targets.boxes).long().clamp(min=0)
    for masks, boxes, match in zip(under, corners, matched(targets.match), strict=True):
        for mask, (x1, y1, x2, y2) in zip(match.tolist(), boxes.tolist(), strict=True):
            masks[mask, y1 : y2 + 1, x1 : x2 + 1] = True
    return int(under.sum())


def crop_masks(device: Device) -> Cases:
    t = mask_targets(device.size(512))
    yield GpuCase(
        op="crop_masks",
        workload=f"{matched(t.match).numel()} boxes, {BINS} x {BINS}, masks of {HEIGHT} x {WIDTH}",
        inputs=(t.masks, t.boxes, t.match),
        sides={
            "fastdet": forward(
                lambda masks, boxes, match: fastdet.crop_masks(masks, boxes, match, BINS)
            ),
            "torchvision": forward(torchvision_crops),
        },
        bytes=pixels_read(t) + 4 * t.match.numel() * BINS**2,
        exact=lambda masks, boxes, match: torchvision_crops(masks, boxes.double(), match),
        compared=lambda crops: matched(crops).flatten(0, 1),
    )


def mask_rcnn_loss(device: Device) -> Cases:
    t = mask_targets(device.size(512))
    logits = torch.randn(*t.match.shape, CLASSES, BINS, BINS, generator=seeded(4))

    def ours(logits: Tensor, labels: Tensor, *targets: Tensor) -> Side:
        leaf = logits.detach().requires_grad_()
        masks, boxes, match, _ = targets
        return gradients(lambda: fastdet.mask_rcnn_loss(leaf, labels, masks, boxes, match), [leaf])

    def theirs(logits: Tensor, _: Tensor, *targets: Tensor) -> Side:
        leaf = matched(logits.detach()).flatten(0, 1).requires_grad_()
        return gradients(lambda: torchvision_loss(leaf, *targets), [leaf])

    def exact(logits: Tensor, labels: Tensor, masks: Tensor, boxes: Tensor, *rest: Tensor) -> Any:
        return theirs(logits.double(), labels, masks, boxes.double(), *rest)()

    def of_matched(found: Any) -> tuple[Tensor, Tensor]:
        loss, (gradient,) = found
        return loss, matched(gradient).flatten(0, 1)

    of_one_channel = logits.nbytes // CLASSES
    yield GpuCase(
        op="mask_rcnn_loss",
        workload=f"{t.match.numel()} boxes, half matched, {CLASSES} classes, forward and backward",
        inputs=(logits, t.labels, t.masks, t.boxes, t.match, t.gt_labels),
        sides={"fastdet": ours, "torchvision": theirs},
        bytes=pixels_read(t) + of_one_channel // 2 + logits.nbytes,
        exact=exact,
        compared=of_matched,
    )


def paste_masks(device: Device) -> Cases:
    masks, boxes = mask_outputs(device.size(100))
    yield GpuCase(
        op="paste_masks",
        workload=f"{len(masks)} masks of {BINS} x {BINS} into {HEIGHT} x {WIDTH}",
        inputs=(masks, boxes),
        sides={
            "fastdet": forward(lambda masks, boxes: fastdet.paste_masks(masks, boxes, SIZE)),
            "torchvision": forward(torchvision_pasted),
        },
        bytes=masks.nbytes + len(masks) * HEIGHT * WIDTH,
        exact=lambda masks, boxes: torchvision_pasted(masks.double(), boxes.double()),
    )


def paste_masks_rle(device: Device) -> Cases:
    masks, boxes = mask_outputs(device.size(100))

    def theirs(masks: Tensor, boxes: Tensor) -> list[Any]:
        return pycocotools_rles(torchvision_pasted(masks, boxes))

    yield GpuCase(
        op="paste_masks_rle",
        workload=f"{len(masks)} masks of {BINS} x {BINS} in {HEIGHT} x {WIDTH}",
        inputs=(masks, boxes),
        sides={
            "fastdet": forward(lambda masks, boxes: fastdet.paste_masks_rle(masks, boxes, SIZE)),
            "torchvision": forward(theirs),
        },
        exact=lambda masks, boxes: theirs(masks.double(), boxes.double()),
    )


def encode_masks(device: Device) -> Cases:
    masks = fastdet.paste_masks(*mask_outputs(device.size(100)), SIZE)
    yield GpuCase(
        op="encode_masks",
        workload=f"{len(masks)} masks of {HEIGHT} x {WIDTH}",
        inputs=(masks,),
        sides={"fastdet": forward(fastdet.encode_masks), "torchvision": forward(pycocotools_rles)},
        bytes=masks.nbytes,
        exact=pycocotools_rles,
    )


SUITES: tuple[Callable[[Device], Cases], ...] = (
    crop_masks,
    mask_rcnn_loss,
    paste_masks,
    paste_masks_rle,
    encode_masks,
)
