# SPDX-License-Identifier: BSD-3-Clause
"""TOOD against its definition, written out in float64, and its loss against numbers by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.models import TOOD, Batch
from fastdet.models.losses import quality_focal_loss
from fastdet.models.tood import TaskFeatures
from tests import reference

from .dense_reference import (
    Candidate,
    assert_detected,
    assert_learns,
    assert_same_losses,
    box_at,
    conv,
    detected,
    double_batch,
    giou_loss,
    rows,
    squares,
    through,
    varied_model,
)


def of_task(task: TaskFeatures, layers: list[Tensor]) -> Tensor:
    """Each layer of the tower times its attention, reduced to the channels of one."""
    pooled = torch.cat([layer.mean((2, 3), keepdim=True) for layer in layers], 1)
    weights = through(task.attention, pooled)
    weighed = [layer * weights[:, i : i + 1] for i, layer in enumerate(layers)]
    return through(task.reduction, torch.cat(weighed, 1))


def moved(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Boxes (4, H, W); each side is read at its offset (8, H, W), y before x -> (H * W, 4)."""
    sides = [
        reference.deform_conv2d(boxes[None, k, None], offsets[None, 2 * k : 2 * k + 2], one)[0, 0]
        for k, one in enumerate(torch.ones(4, 1, 1, 1, 1, dtype=torch.float64))
    ]
    found = []
    for i in range(boxes.shape[1]):
        for j in range(boxes.shape[2]):
            left, top, right, bottom = (side[i, j] for side in sides)
            inverted = bool(left > right) or bool(top > bottom)
            found.append(boxes[:, i, j] if inverted else torch.stack([left, top, right, bottom]))
    return torch.stack(found)


def forward(model: TOOD, batch: Batch) -> list[list[tuple[Tensor, Tensor]]]:
    """Scores (A_l, C) and boxes (A_l, 4) of each level, of each image."""
    features, head = model.backbone(batch.images), model.head
    images: list[list[tuple[Tensor, Tensor]]] = [[] for _ in batch.images]
    for level, (feature, own) in enumerate(zip(features, squares(features, side=1), strict=True)):
        layers = []
        for layer in head.tower:
            layers.append(through([layer], layers[-1] if layers else feature))
        classes, regression = head.classification_head, head.regression_head
        together = torch.cat(layers, 1)
        logits = conv(classes.cls_logits, of_task(classes.task, layers))  # type: ignore[arg-type]
        fit = through(classes.alignment, together)
        scores = (rows(logits).sigmoid() * rows(fit).sigmoid()).sqrt()
        distances = conv(regression.bbox_reg, of_task(regression.task, layers))  # type: ignore[arg-type]
        distances = rows(distances.exp() * regression.scale[level])
        offsets = through(regression.offsets, together)
        for b in range(len(scores)):
            boxes = torch.stack(
                [
                    torch.stack(box_at(square, list(row)))
                    for square, row in zip(own, distances[b], strict=True)
                ]
            )
            map_of_boxes = boxes.T.unflatten(1, feature.shape[2:])
            images[b].append((scores[b], moved(map_of_boxes, offsets[b])))
    return images


def expected_losses(model: TOOD, batch: Batch) -> dict[str, Tensor]:
    features = model.backbone(batch.images)
    flat = [square for level in squares(features, side=1) for square in level]
    points = torch.tensor([[(s[0] + s[2]) / 2, (s[1] + s[3]) / 2] for s in flat])
    classification = box_sum = torch.zeros((), dtype=torch.float64)
    total, positives = 0.0, 0
    for b, levels in enumerate(forward(model, batch)):
        scores, boxes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        count = int(batch.gt_counts[b])
        own, labels = batch.gt_boxes[b, :count], batch.gt_labels[b, :count]
        index, metric = reference.assign_task_aligned(
            scores.detach(), boxes.detach(), points, labels, own, 13, 1.0, 6.0
        )
        targets = torch.zeros_like(scores)
        for a, g in enumerate(index):
            if g >= 0:
                box_sum = box_sum + metric[a] * giou_loss(boxes[a], own[g])
                total, positives = total + metric[a], positives + 1
                targets[a, labels[g]] = metric[a]
        entropy = -targets * scores.log() - (1 - targets) * (1 - scores).log()
        classification = classification + (entropy * (targets - scores) ** 2).sum()
    assert positives > 5
    assert total > 1
    return {"classification": classification / total, "bbox_regression": 2 * box_sum / total}


def test_losses_and_gradients_are_those_of_the_definition() -> None:
    model = varied_model("tood")
    assert isinstance(model, TOOD)
    batch = double_batch(model)
    assert_same_losses(model, model.losses(batch), expected_losses(model, batch))


def test_detections_are_those_of_the_definition() -> None:
    model = varied_model("tood").eval()
    assert isinstance(model, TOOD)
    batch = double_batch(model)
    with torch.no_grad():
        found = model.detect(batch)
        images = forward(model, batch)
    expected = []
    for levels, size in zip(images, batch.sizes.tolist(), strict=True):
        candidates: list[list[Any]] = [
            [
                Candidate(p, p, box, label)
                for box, of_box in zip(boxes.tolist(), scores.tolist(), strict=True)
                for label, p in enumerate(of_box)
            ]
            for scores, boxes in levels
        ]
        expected.append(detected(candidates, size, 0.05, 0.6))
    assert_detected(found, expected)


def test_the_loss_by_hand() -> None:
    scores = torch.tensor([1 / 4, 1 / 4, 1 / 2], dtype=torch.float64)
    log_scores = scores.log().requires_grad_()
    losses = quality_focal_loss(log_scores, torch.tensor([0.75, 0.0, 0.5]).double())
    expected = [
        (0.75 * math.log(4) + 0.25 * math.log(4 / 3)) * 0.5**2,
        math.log(4 / 3) * 0.25**2,
        0.0,  # at the target
    ]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert log_scores.grad is not None
    assert log_scores.grad[0] < 0 < log_scores.grad[1]  # the one rises, the other one falls
    certain = torch.zeros(1, requires_grad=True)  # a score of 1 that should be 0
    loss = quality_focal_loss(certain, torch.zeros(1)).sum()
    loss.backward()
    assert loss > 15
    assert certain.grad is not None
    assert bool(certain.grad.isfinite().all())


@pytest.mark.slow
def test_it_learns() -> None:
    assert_learns("tood")
