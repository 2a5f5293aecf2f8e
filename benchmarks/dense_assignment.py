# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks of dense assigners share: a detector's outputs, and the peers' assigners."""

import importlib
import warnings
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from benchmarks.workloads import seeded

TOPK, ALPHA, BETA = 10, 0.5, 6.0
IMAGE = 640
STRIDES = (8, 16, 32, 64, 128)
ATSS_TOPK = 9
ATSS_IMAGE = 1024  # 21,824 anchors


class Dense(NamedTuple):
    """A dense detector's outputs and its targets: the arguments of `assign_task_aligned`.

    Attributes:
        scores: (B, A, C).
        boxes: (B, A, 4).
        points: (A, 2).
        gt_labels: (B, G).
        gt_boxes: (B, G, 4).
        gt_counts: (B,), all G.
    """

    scores: Tensor
    boxes: Tensor
    points: Tensor
    gt_labels: Tensor
    gt_boxes: Tensor
    gt_counts: Tensor

    def double(self) -> "Dense":
        """In float64."""
        return Dense(*(t.double() if t.is_floating_point() else t for t in self))


def pyramid_points(side: int, strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(A, 2) the centres of the cells of all levels, and (A,) their strides."""
    points, strides_of = [], []
    for stride in strides:
        at = torch.arange(stride / 2, side, stride)
        y, x = torch.meshgrid(at, at, indexing="ij")
        points.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides_of.append(torch.full((x.numel(),), float(stride)))
    return torch.cat(points), torch.cat(strides_of)


def random_gts(images: int, gts: int, side: int, largest: int, classes: int) -> tuple[Tensor, ...]:
    """Labels, boxes with sides from 16 px, and counts."""
    generator = seeded(31)
    sides = 16 + (largest - 16) * torch.rand(images, gts, 2, generator=generator) ** 2
    corner = torch.rand(images, gts, 2, generator=generator) * (side - sides).clamp(min=0)
    labels = torch.randint(classes, (images, gts), generator=generator)
    return labels, torch.cat([corner, corner + sides], -1), torch.full((images,), gts)


def dense_outputs(
    images: int,
    gts: int,
    side: int = IMAGE,
    largest: int = 320,
    classes: int = 80,
    strides: tuple[int, ...] = (8, 16, 32),
) -> Dense:
    """Outputs of a YOLO on square images, as after some epochs: boxes lie about their points."""
    generator = seeded(32)
    points, stride = pyramid_points(side, strides)
    shape = images, len(points)
    centre = points + stride[:, None] * torch.randn(*shape, 2, generator=generator)
    sides = 4 * stride[:, None] * torch.randn(*shape, 2, generator=generator).exp()
    scores = torch.rand(*shape, classes, generator=generator) ** 4
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], -1)
    return Dense(scores, boxes, points, *random_gts(images, gts, side, largest, classes))


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(A, 2), (..., 4) -> (..., A): whether the point lies strictly in the box."""
    low, high = boxes[..., None, :2] < points, boxes[..., None, 2:] > points
    return (low & high).all(-1)


def task_aligned_by_torch(dense: Dense) -> Tensor:
    """(B, A): the gt of each anchor or -1, from matrices of gts x anchors."""
    candidate = inside(dense.points, dense.gt_boxes)  # (B, G, A)
    pairs = zip(dense.gt_boxes, dense.boxes, strict=True)
    overlap = torch.stack([torchvision.ops.complete_box_iou(*pair) for pair in pairs]).clamp(min=0)
    overlap = overlap * candidate
    labels = dense.gt_labels[:, None].expand(-1, len(dense.points), -1)
    score = dense.scores.gather(2, labels).transpose(1, 2)  # (B, G, A)
    alignment = score**ALPHA * overlap**BETA
    best = alignment.topk(TOPK, -1)
    picked = torch.zeros_like(candidate).scatter_(-1, best.indices, best.values > 0)
    most = torch.zeros_like(picked).scatter_(1, overlap.argmax(1, keepdim=True), True)
    picked = torch.where(picked.sum(1, keepdim=True) > 1, most, picked)
    return torch.where(picked.any(1), picked.int().argmax(1), -1)


def ultralytics_assigner(classes: int) -> Any:
    """Ultralytics' TaskAlignedAssigner; None where that is not installed."""
    try:
        tal: Any = importlib.import_module("ultralytics.utils.tal")
    except ImportError as error:
        warnings.warn(f"{error}: assignment is not compared with Ultralytics'", stacklevel=1)
        return None
    return tal.TaskAlignedAssigner(topk=TOPK, num_classes=classes, alpha=ALPHA, beta=BETA)


def assigned_by_ultralytics(assigner: Any, dense: Dense) -> Tensor:
    """(B, A): the gt of each anchor with a target above 0, or -1."""
    gts = torch.arange(dense.gt_boxes.size(1), device=dense.gt_counts.device)
    _, _, targets, foreground, index = assigner(
        dense.scores,
        dense.boxes,
        dense.points,
        dense.gt_labels[..., None],
        dense.gt_boxes,
        (gts < dense.gt_counts[:, None])[..., None],
    )
    return torch.where(foreground & (targets.amax(-1) > 0), index, -1)


class Anchors(NamedTuple):
    """The arguments of `assign_atss`, without its level_sizes.

    Attributes:
        boxes: (A, 4), level by level.
        gt_boxes: (B, G, 4).
        gt_counts: (B,), all G.
    """

    boxes: Tensor
    gt_boxes: Tensor
    gt_counts: Tensor

    def double(self) -> "Anchors":
        """In float64."""
        return Anchors(self.boxes.double(), self.gt_boxes.double(), self.gt_counts)


def atss_anchors(images: int, gts: int, side: int) -> tuple[Anchors, list[int]]:
    """One square anchor of 8 strides on each point of a pyramid of five levels; and their sizes."""
    points, strides = pyramid_points(side, STRIDES)
    half = 4 * strides[:, None]
    sizes = [int((strides == stride).sum()) for stride in STRIDES]
    _, gt_boxes, counts = random_gts(images, gts, side, side // 2, 1)
    return Anchors(torch.cat([points - half, points + half], 1), gt_boxes, counts), sizes


def atss_by_torch(anchors: Anchors, level_sizes: list[int], topk: int) -> Tensor:
    """(B, A): the gt of each anchor or -1, from matrices of anchors x gts, image by image."""
    images = [
        atss_of_image(anchors.boxes, level_sizes, gt_boxes, topk) for gt_boxes in anchors.gt_boxes
    ]
    return torch.stack(images)


def atss_of_image(boxes: Tensor, level_sizes: list[int], gt_boxes: Tensor, topk: int) -> Tensor:
    """(A,): the gt of each anchor or -1."""
    overlap = torchvision.ops.box_iou(boxes, gt_boxes)  # (A, G)
    centre, gt_centre = [(x[:, :2] + x[:, 2:]) / 2 for x in (boxes, gt_boxes)]
    distance = torch.cdist(centre, gt_centre, compute_mode="donot_use_mm_for_euclid_dist")
    candidates, begin = [], 0
    for size in level_sizes:
        level = distance[begin : begin + size]
        candidates.append(level.topk(min(topk, size), 0, largest=False).indices + begin)
        begin += size
    candidate = torch.cat(candidates)  # (n, G)
    own = overlap.gather(0, candidate)
    positive = own >= own.mean(0) + own.std(0)
    depth = torch.cat([centre[candidate] - gt_boxes[:, :2], gt_boxes[:, 2:] - centre[candidate]], 2)
    positive &= depth.amin(2) > 0.01
    best = torch.full_like(overlap, -1).scatter_(0, candidate, torch.where(positive, own, -1))
    iou, index = best.max(1)
    return torch.where(iou > 0, index, -1)


RADIUS = 2.5
EPS = 1e-7
OTHERS_COST = 1e5  # of an anchor that is not in the gt and near its centre
MOST_LOG = 100.0  # as in torch's binary cross entropy


def simota_outputs(images: int, gts: int, side: int = ATSS_IMAGE) -> tuple[Dense, Tensor]:
    """Outputs of a YOLOX on a pyramid of five levels, and the strides (A,) of its anchors."""
    dense = dense_outputs(images, gts, side, side // 2, strides=STRIDES)
    return dense, pyramid_points(side, STRIDES)[1]


def simota_by_torch(dense: Dense, strides: Tensor) -> Tensor:
    """(B, A): the gt of each anchor or -1, from matrices of anchors x gts, image by image."""
    return torch.stack([simota_of_image(dense, strides, b) for b in range(len(dense.scores))])


def class_costs(scores: Tensor, labels: Tensor) -> Tensor:
    """(A, C), (G,) -> (A, G): the binary cross entropy of all scores with one class as target."""
    absent = -(-scores).log1p().clamp(min=-MOST_LOG)
    present = -scores.log().clamp(min=-MOST_LOG)
    return absent.sum(1, keepdim=True) + (present - absent)[:, labels]


def simota_of_image(dense: Dense, strides: Tensor, image: int) -> Tensor:
    """(A,): the gt of each anchor or -1."""
    gt_boxes, boxes = dense.gt_boxes[image], dense.boxes[image]
    centre, reach = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2, RADIUS * strides[:, None]  # (A, 1)
    near = ((dense.points[:, None] - centre).abs().amax(2) < reach).T  # (G, A)
    within = inside(dense.points, gt_boxes)
    valid, central = (near | within).any(0), near & within
    overlap = torchvision.ops.box_iou(gt_boxes, boxes) * valid
    cost = class_costs(dense.scores[image], dense.gt_labels[image]).T - 3 * (overlap + EPS).log()
    cost = (cost + OTHERS_COST * ~central).masked_fill(~valid, torch.inf)
    picks = overlap.topk(TOPK, 1).values.sum(1).int().clamp(min=1)
    cheapest = cost.topk(TOPK, 1, largest=False)
    chosen = torch.arange(TOPK, device=picks.device) < picks[:, None]
    chosen &= cheapest.values < torch.inf
    picked = torch.zeros_like(central).scatter_(1, cheapest.indices, chosen)
    least = torch.zeros_like(central).scatter_(0, cost.argmin(0, keepdim=True), True)
    picked = torch.where(picked.sum(0) > 1, least, picked)
    return torch.where(picked.any(0), picked.int().argmax(0), -1)
