# SPDX-License-Identifier: BSD-3-Clause
"""ATSS against its definition, written out in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.models import ATSS, Batch
from fastdet.models.atss import DELTA_WEIGHTS
from tests import reference

from .dense_reference import (
    Candidate,
    assert_detected,
    assert_learns,
    assert_same_losses,
    conv,
    detected,
    double_batch,
    giou_loss,
    rows,
    squares,
    through,
    varied_model,
)


def forward(model: ATSS, batch: Batch) -> tuple[list[Any], list[Any]]:
    """Logits, deltas and centerness of each level, as rows; and the squares of each level."""
    features, levels = model.backbone(batch.images), []
    classes, boxes = model.head.classification_head, model.head.regression_head
    for level, feature in enumerate(features):
        logits = conv(classes.cls_logits, through(classes.conv, feature))
        hidden = through(boxes.conv, feature)
        deltas = conv(boxes.bbox_reg, hidden) * boxes.scale[level]
        levels.append([rows(x) for x in (logits, deltas, conv(boxes.bbox_ctrness, hidden))])
    return levels, squares(features, side=8)


def centredness(square: list[float], gt: list[float]) -> float:
    x, y = (square[0] + square[2]) / 2, (square[1] + square[3]) / 2
    left, top, right, bottom = x - gt[0], y - gt[1], gt[2] - x, gt[3] - y
    across = min(left, right) / max(left, right)
    return math.sqrt(across * min(top, bottom) / max(top, bottom))


def expected_losses(model: ATSS, batch: Batch) -> dict[str, Tensor]:
    levels, anchors = forward(model, batch)
    flat = torch.tensor([square for level in anchors for square in level])
    sizes = [len(level) for level in anchors]
    logits, deltas, ctrness = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    classification = box_sum = ctrness_sum = torch.zeros((), dtype=torch.float64)
    positives, weights = 0, 0.0
    for b, count in enumerate(batch.gt_counts.tolist()):
        own = batch.gt_boxes[b, :count]
        index, _ = reference.assign_atss(flat, sizes, own, 9)
        labels = torch.tensor([int(batch.gt_labels[b, g]) if g >= 0 else -1 for g in index])
        classification = (
            classification + reference.sigmoid_focal_loss(logits[b], labels, 0.25, 2).sum()
        )
        for a, g in enumerate(index):
            if g < 0:
                continue
            target = centredness(flat[a].tolist(), own[g].tolist())
            box = reference.decode_boxes(deltas[b, a], flat[a], DELTA_WEIGHTS)
            box_sum = box_sum + target * giou_loss(box, own[g])
            p = ctrness[b, a, 0].sigmoid()
            ctrness_sum = ctrness_sum - target * p.log() - (1 - target) * (1 - p).log()
            positives, weights = positives + 1, weights + target
    assert positives > 5
    return {
        "classification": classification / positives,
        "bbox_regression": 2 * box_sum / max(weights, 1),
        "bbox_ctrness": ctrness_sum / positives,
    }


def test_losses_and_gradients_are_those_of_the_definition() -> None:
    model = varied_model("atss")
    assert isinstance(model, ATSS)
    batch = double_batch(model)
    assert_same_losses(model, model.losses(batch), expected_losses(model, batch))


def test_detections_are_those_of_the_definition() -> None:
    """The threshold is one of the probability; the score also contains the centerness."""
    model = varied_model("atss").eval()
    assert isinstance(model, ATSS)
    batch = double_batch(model)
    with torch.no_grad():
        found = model.detect(batch)
        levels, anchors = forward(model, batch)
    expected = []
    for b, size in enumerate(batch.sizes.tolist()):
        candidates = []
        for (logits, deltas, ctrness), own in zip(levels, anchors, strict=True):
            boxes = reference.decode_boxes(deltas[b], torch.tensor(own), DELTA_WEIGHTS).tolist()
            probabilities = logits[b].sigmoid().tolist()
            inner = ctrness[b, :, 0].sigmoid().tolist()
            candidates.append(
                [
                    Candidate(p, p * inner[a], boxes[a], label)
                    for a in range(len(own))
                    for label, p in enumerate(probabilities[a])
                ]
            )
        expected.append(detected(candidates, size, 0.05, 0.6))
    assert any(score < 0.05 for _, scores, _ in expected for score in scores)
    assert_detected(found, expected)


@pytest.mark.slow
def test_it_learns() -> None:
    assert_learns("atss", anchor_sizes=(32, 64))
