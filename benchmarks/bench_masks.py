# SPDX-License-Identifier: BSD-3-Clause
"""Mask R-CNN's masks: targets and loss in training, pasted pixels and run lengths in inference.

Beside torchvision's `project_masks_on_boxes` and `maskrcnn_loss`, which make the masks floating and
pool them, its `paste_masks_in_image`, and pycocotools' encoder behind that.
"""

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import gradients, random_boxes, seeded

HEIGHT, WIDTH, BINS, CLASSES = 800, 1216, 28, 91
# A bilinear sample along both axes: two differences, two products, two sums, and a comparison.
OPERATIONS_OF_PIXEL = 4


class Training:
    """Two images, 20 masks each, and boxes near the objects, half of which match nothing."""

    def __init__(self, beside: Beside) -> None:
        n, gts = beside.size(512), 20
        self.gt_boxes = random_boxes(2 * gts, 1000, 600, 340).view(2, gts, 4)
        self.masks = torch.stack([discs(boxes) for boxes in self.gt_boxes])
        gt_of = torch.randint(gts, (2, n), generator=seeded(1))
        self.match = torch.where(torch.arange(n) % 2 == 0, gt_of, -1)
        boxes = self.gt_boxes.gather(1, gt_of[..., None].expand(-1, -1, 4))
        sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
        self.boxes = boxes + 0.1 * sides * torch.randn(2, n, 4, generator=seeded(2))
        self.gt_labels = torch.randint(1, CLASSES, (2, gts), generator=seeded(3))
        self.labels = self.gt_labels.gather(1, gt_of)
        self.rows = [match >= 0 for match in self.match]

    def crops(self, dtype: torch.dtype) -> Tensor:
        """torchvision's, of the rows that match."""
        return torch.cat(
            [
                torchvision.ops.roi_align(
                    masks[:, None].to(dtype),
                    torch.cat([match[rows, None], boxes[rows]], 1).to(dtype),
                    BINS,
                )
                for masks, match, boxes, rows in zip(
                    self.masks, self.match, self.boxes, self.rows, strict=True
                )
            ]
        )[:, 0]

    def pixels_read(self) -> int:
        """Bytes of masks under the boxes."""
        size = torch.tensor([WIDTH, HEIGHT] * 2)
        inside = self.boxes[self.match >= 0].clamp(min=0).minimum(size)
        sides = (inside[:, 2:] - inside[:, :2]).clamp(min=0) + 1
        return int(sides.prod(1).sum())


def discs(boxes: Tensor) -> Tensor:
    """(G, HEIGHT, WIDTH) bool: the ellipse in each box."""
    center, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    y, x = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)
    shape = (-1, 1, 1)
    across = (x - center[:, 0].view(shape)) / radius[:, 0].view(shape)
    down = (y - center[:, 1].view(shape)) / radius[:, 1].view(shape)
    return across**2 + down**2 < 1


def bench_crop(beside: Beside) -> None:
    t = Training(beside)
    read, crops = t.pixels_read(), int((t.match >= 0).sum()) * BINS**2
    beside(
        Case(
            op="crop_masks",
            workload=f"{crops // BINS**2} boxes, {BINS} x {BINS}, masks of {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.crop_masks(t.masks, t.boxes, t.match, BINS),
                "torchvision": lambda: t.crops(torch.float32),
            },
            floor=stream(reads=read, writes=4 * t.match.numel() * BINS**2),
            operations=read,
        )
    )


def bench_loss(beside: Beside) -> None:
    t = Training(beside)
    shape = (*t.match.shape, CLASSES, BINS, BINS)
    logits = torch.randn(shape, generator=seeded(4)).requires_grad_()
    rows = torch.cat(t.rows)
    # Its mask head sees the rows that match and no other.
    of_rows = logits.detach().flatten(0, 1)[rows].requires_grad_()
    boxes, match = ([x[r] for x, r in zip(all, t.rows, strict=True)] for all in (t.boxes, t.match))

    def theirs() -> Tensor:
        return maskrcnn_loss(of_rows, boxes, list(t.masks), list(t.gt_labels), match)

    beside(
        Case(
            op="mask_rcnn_loss",
            workload=f"{len(rows)} boxes, half matched, {CLASSES} classes, forward and backward",
            sides={
                "fastdet": gradients(
                    lambda: fastdet.mask_rcnn_loss(logits, t.labels, t.masks, t.boxes, t.match),
                    [logits],
                ),
                "torchvision": gradients(theirs, [of_rows]),
            },
            floor=stream(reads=t.pixels_read(), writes=logits.nbytes),
            operations=t.pixels_read(),
        )
    )


class Inference:
    """The masks of an image's detections."""

    def __init__(self, beside: Beside) -> None:
        self.n = beside.size(100)
        self.boxes = random_boxes(self.n, 1000, 600, 340)
        grid = (torch.arange(BINS) + 0.5) / BINS - 0.5
        distance = (grid[:, None] ** 2 + grid**2).sqrt()
        radius = 0.3 + 0.3 * torch.rand(self.n, 1, 1, generator=seeded(5))
        self.masks = torch.sigmoid((radius - distance) * 20)  # (N, 28, 28)

    def pasted(self) -> Tensor:
        return paste_masks_in_image(self.masks[:, None], self.boxes, (HEIGHT, WIDTH))[:, 0] > 0.5

    def encoded(self) -> list[object]:
        return [coco_mask.encode(np.asfortranarray(m)) for m in self.pasted().byte().numpy()]

    def pixels(self) -> int:
        return int((self.boxes[:, 2:] - self.boxes[:, :2]).prod(1).sum())


def bench_paste(beside: Beside) -> None:
    t = Inference(beside)
    beside(
        Case(
            op="paste_masks",
            workload=f"{t.n} masks of {BINS} x {BINS} into {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.paste_masks(t.masks, t.boxes, (HEIGHT, WIDTH)),
                "torchvision": t.pasted,
            },
            floor=stream(reads=t.masks.nbytes, writes=t.n * HEIGHT * WIDTH),
            operations=OPERATIONS_OF_PIXEL * t.pixels(),
        )
    )


def bench_paste_rle(beside: Beside) -> None:
    t = Inference(beside)
    columns = int((t.boxes[:, 2] - t.boxes[:, 0]).sum())
    beside(
        Case(
            op="paste_masks_rle",
            workload=f"{t.n} masks of {BINS} x {BINS} in {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.paste_masks_rle(t.masks, t.boxes, (HEIGHT, WIDTH)),
                "torchvision": t.encoded,
            },
            operations=OPERATIONS_OF_PIXEL * columns * BINS,
        )
    )


def bench_encode(beside: Beside) -> None:
    t = Inference(beside)
    masks = fastdet.paste_masks(t.masks, t.boxes, (HEIGHT, WIDTH))
    beside(
        Case(
            op="encode_masks",
            workload=f"{t.n} masks of {HEIGHT} x {WIDTH}",
            sides={
                "fastdet": lambda: fastdet.encode_masks(masks),
                "torchvision": lambda: [
                    coco_mask.encode(np.asfortranarray(m)) for m in masks.byte().numpy()
                ],
            },
            floor=stream(reads=masks.nbytes),
        )
    )
