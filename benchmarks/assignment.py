# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks of assignment share: DETR's outputs, and the matching as others do it."""

import importlib
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from benchmarks.workloads import seeded

COST_CLASS, COST_BBOX, COST_GIOU, ALPHA, GAMMA = 2.0, 5.0, 2.0, 0.25, 2.0


class QueryOutputs(NamedTuple):
    """A DETR's outputs and its targets: the arguments of `match_queries`.

    Attributes:
        logits: (L, B, Q, C).
        boxes: (L, B, Q, 4) cxcywh in units of the image's sides.
        gt_labels: (B, G).
        gt_boxes: (B, G, 4).
        gt_counts: (B,), all G.
    """

    logits: Tensor
    boxes: Tensor
    gt_labels: Tensor
    gt_boxes: Tensor
    gt_counts: Tensor

    def double(self) -> "QueryOutputs":
        """In float64."""
        return QueryOutputs(*(t.double() if t.is_floating_point() else t for t in self))


def query_outputs(layers: int, images: int, queries: int, gts: int, classes: int) -> QueryOutputs:
    """Random outputs of which a fifth lies about the gts, as after some epochs of training."""
    generator = seeded(21)
    centre = torch.rand(images, gts, 2, generator=generator)
    gt_boxes = torch.cat([centre, 0.03 + 0.3 * torch.rand(centre.shape, generator=generator)], -1)
    gt_labels = torch.randint(classes, (images, gts), generator=generator)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.5 + 0.02
    logits = torch.randn(layers, images, queries, classes, generator=generator) - 4
    near = torch.arange(0, queries, 5)
    of = torch.randint(gts, (len(near),), generator=generator)
    shift = 0.03 * torch.randn(layers, images, len(near), 4, generator=generator)
    boxes[:, :, near] = (gt_boxes[:, of] + shift).clamp(0.01, 1)
    for image in range(images):
        logits[:, image, near, gt_labels[image, of]] += 3
    return QueryOutputs(
        logits, boxes, gt_labels, gt_boxes, torch.full((images,), gts, dtype=torch.int64)
    )


def class_costs(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """(Q, C), (G,) -> (Q, G), as in the matchers of DETR and of Deformable DETR."""
    if kind == "softmax":
        return -logits.softmax(-1)[:, labels]
    p = logits.sigmoid()
    negative = (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
    positive = ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log()
    return positive[:, labels] - negative[:, labels]


def scipy_assignment() -> Any:
    """SciPy's function, imported here, so that a machine without it can measure the rest."""
    return importlib.import_module("scipy.optimize").linear_sum_assignment


def matched_by_scipy(outputs: QueryOutputs, kind: str = "focal") -> Tensor:
    """DETR's matcher, layer by layer: a matrix of costs in torch, then SciPy for each image."""
    layers = [match_layer(outputs, layer, kind) for layer in range(len(outputs.logits))]
    return torch.stack(layers)


def match_layer(outputs: QueryOutputs, layer: int, kind: str) -> Tensor:
    """(B, Q): the gt of each query, or -1."""
    logits, boxes = outputs.logits[layer], outputs.boxes[layer]
    images, queries = logits.shape[:2]
    assign = scipy_assignment()
    gt_boxes = outputs.gt_boxes.flatten(0, 1)
    corners = [torchvision.ops.box_convert(b, "cxcywh", "xyxy") for b in (boxes, gt_boxes)]
    cost = COST_BBOX * torch.cdist(boxes.flatten(0, 1), gt_boxes, p=1)
    cost = cost + COST_CLASS * class_costs(logits.flatten(0, 1), outputs.gt_labels.flatten(), kind)
    giou = torchvision.ops.generalized_box_iou(corners[0].flatten(0, 1), corners[1])
    cost = (cost - COST_GIOU * giou).view(images, queries, images, -1).cpu()
    index = torch.full((images, queries), -1)
    for image in range(images):
        rows, columns = assign(cost[image, :, image].numpy())
        index[image, rows] = torch.from_numpy(columns)
    return index.to(logits.device)


def transformers_matcher(kind: str = "focal") -> Any:
    """RT-DETR's matcher of transformers; None where that is not installed."""
    try:
        losses: Any = importlib.import_module("transformers.loss.loss_rt_detr")
    except ModuleNotFoundError as error:
        warnings.warn(f"{error}: matching is not compared with transformers'", stacklevel=1)
        return None
    return losses.RTDetrHungarianMatcher(
        SimpleNamespace(
            matcher_class_cost=COST_CLASS,
            matcher_bbox_cost=COST_BBOX,
            matcher_giou_cost=COST_GIOU,
            use_focal_loss=kind == "focal",
            matcher_alpha=ALPHA,
            matcher_gamma=GAMMA,
        )
    )


def matched_by_transformers(matcher: Any, outputs: QueryOutputs) -> Tensor:
    """Layer by layer, as DETR's loss calls its matcher."""
    targets = [
        {"class_labels": labels, "boxes": boxes}
        for labels, boxes in zip(outputs.gt_labels, outputs.gt_boxes, strict=True)
    ]
    index = torch.full(outputs.logits.shape[:3], -1)
    for layer, (logits, boxes) in enumerate(zip(outputs.logits, outputs.boxes, strict=True)):
        pairs = matcher({"logits": logits, "pred_boxes": boxes}, targets)
        for image, (rows, columns) in enumerate(pairs):
            index[layer, image, rows] = columns
    return index


def costs_of(problems: int, rows: int, columns: int) -> Tensor:
    """(P, R, C) random costs."""
    return torch.rand(problems, rows, columns, generator=seeded(22))


def assigned_by_scipy(cost: Tensor) -> Tensor:
    """Problem by problem."""
    index, assign = torch.full(cost.shape[:2], -1), scipy_assignment()
    for own, matrix in zip(index, cost.cpu().numpy(), strict=True):
        rows, columns = assign(matrix)
        own[rows] = torch.from_numpy(columns)
    return index.to(cost.device)
