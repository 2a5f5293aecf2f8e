# SPDX-License-Identifier: BSD-3-Clause
"""VFNet against its definition, written out in float64, and its loss against numbers by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.models import Batch, VFNet
from fastdet.models.losses import varifocal_loss
from fastdet.models.vfnet import StarConv, star_offsets
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
from .scenes import scene, tiny_model


def read_at_box(layer: StarConv, x: Tensor, distances: Tensor) -> Tensor:
    """A 3x3 convolution whose taps lie at the corners, sides and centre of each box.

    A tenth of the gradient reaches the distances (B, 4, H, W), in pixels of the map.
    """
    slow = 0.1 * distances + 0.9 * distances.detach()
    offsets = torch.zeros(len(x), 18, *x.shape[2:], dtype=torch.float64)
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        for number, step, (before, after) in ((0, down, (1, 3)), (1, right, (0, 2))):
            if step:
                way = -slow[:, before] if step < 0 else slow[:, after]
                offsets[:, 2 * tap + number] = way - step
    return torch.relu(reference.deform_conv2d(x, offsets, layer.weight, padding=(1, 1)))


def forward(model: VFNet, batch: Batch) -> tuple[list[Any], list[Any]]:
    """Logits, distances and refined distances of each level, as rows; and the squares."""
    features, levels = model.backbone(batch.images), []
    classes, boxes = model.head.classification_head, model.head.regression_head
    for level, feature in enumerate(features):
        hidden = through(boxes.conv, feature)
        first = conv(boxes.bbox_reg, through(boxes.first_conv, hidden))
        distances = (first * boxes.scale[level]).exp()  # in sides of a square of 8 strides
        refine = conv(boxes.bbox_refine, read_at_box(boxes.star_conv, hidden, 8 * distances))
        refined = (refine * boxes.refine_scale[level]).exp() * distances.detach()
        hidden = read_at_box(classes.star_conv, through(classes.conv, feature), 8 * distances)
        logits = conv(classes.cls_logits, hidden)
        levels.append([rows(x) for x in (logits, distances, refined)])
    return levels, squares(features, side=8)


def boxes_of(distances: Tensor, own: list[list[float]]) -> Tensor:
    return torch.stack(
        [torch.stack(box_at(square, list(row))) for square, row in zip(own, distances, strict=True)]
    )


def expected_losses(model: VFNet, batch: Batch) -> dict[str, Tensor]:
    levels, anchors = forward(model, batch)
    flat = [square for level in anchors for square in level]
    sizes = [len(level) for level in anchors]
    logits, first, refined = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    zero = torch.zeros((), dtype=torch.float64)
    classification, box_sums, weights, positives = zero, [zero, zero], [0.0, 0.0], 0
    for b, count in enumerate(batch.gt_counts.tolist()):
        own = batch.gt_boxes[b, :count]
        index, _ = reference.assign_atss(torch.tensor(flat), sizes, own, 9)
        boxes = [boxes_of(distances[b], flat) for distances in (first, refined)]
        for a, g in enumerate(index):
            quality = 0.0
            if g >= 0:
                positives += 1
                for which in range(2):
                    box = boxes[which][a]
                    quality = max(reference.iou(box.tolist(), own[g].tolist()), 1e-6)
                    box_sums[which] = box_sums[which] + quality * giou_loss(box, own[g])
                    weights[which] += quality
            p = logits[b, a].sigmoid()  # (C,)
            losses = -0.75 * p**2 * (1 - p).log()
            if g >= 0:
                positive = -quality * (quality * p.log() + (1 - quality) * (1 - p).log())
                label = int(batch.gt_labels[b, g])
                losses = torch.cat((losses[:label], positive[label, None], losses[label + 1 :]))
            classification = classification + losses.sum()
    assert positives > 5
    return {
        "classification": classification / positives,
        "bbox_regression": 1.5 * box_sums[0] / max(weights[0], 1),
        "bbox_refinement": 2 * box_sums[1] / max(weights[1], 1),
    }


def test_losses_and_gradients_are_those_of_the_definition() -> None:
    model = varied_model("vfnet")
    assert isinstance(model, VFNet)
    batch = double_batch(model)
    assert_same_losses(model, model.losses(batch), expected_losses(model, batch))


def test_detections_are_those_of_the_definition() -> None:
    model = varied_model("vfnet").eval()
    assert isinstance(model, VFNet)
    batch = double_batch(model)
    with torch.no_grad():
        found = model.detect(batch)
        levels, anchors = forward(model, batch)
    expected = []
    for b, size in enumerate(batch.sizes.tolist()):
        candidates = []
        for (logits, _, refined), own in zip(levels, anchors, strict=True):
            boxes = boxes_of(refined[b], own).tolist()
            scores = logits[b].sigmoid().tolist()
            candidates.append(
                [
                    Candidate(p, p, boxes[a], label)
                    for a in range(len(own))
                    for label, p in enumerate(scores[a])
                ]
            )
        expected.append(detected(candidates, size, 0.05, 0.6))
    assert_detected(found, expected)


def test_the_loss_by_hand() -> None:
    """A positive is weighted by its target q, a negative by alpha * p^gamma."""
    thirds = math.log(1 / 2)  # p = 1/3
    logits = torch.tensor([thirds, thirds, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0.75, 0.0, 0.5, 0.0], dtype=torch.float64)
    losses = varifocal_loss(logits, targets, alpha=0.5, gamma=2.0)
    expected = [
        0.75 * (0.75 * math.log(3) + 0.25 * math.log(3 / 2)),
        0.5 * (1 / 9) * math.log(3 / 2),
        0.5 * math.log(2),
        0.5 * (1 / 4) * math.log(2),
    ]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert logits.grad is not None
    # A positive: q (p - q). A negative: alpha p^2 (p - 2 (1 - p) log(1 - p)).
    gradients = [
        0.75 * (1 / 3 - 0.75),  # below the target: the score rises
        0.5 / 9 * (1 / 3 + 2 * (2 / 3) * math.log(3 / 2)),  # a negative: the score falls
        0.0,  # at the target
        0.5 / 4 * (1 / 2 + 2 * (1 / 2) * math.log(2)),
    ]
    assert logits.grad.tolist() == pytest.approx(gradients, abs=1e-12)
    assert logits.grad[0] < 0 < logits.grad[1]


def test_a_score_above_its_iou_falls() -> None:
    logits = torch.tensor([2.0], requires_grad=True)
    varifocal_loss(logits, torch.tensor([0.3])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0] > 0


def test_the_star_lies_on_the_box() -> None:
    """Left 2, top 3, right 5 and bottom 7; the taps are at -1, 0 and 1 without offsets."""
    distances = torch.tensor([2.0, 3.0, 5.0, 7.0]).reshape(1, 4, 1, 1).requires_grad_()
    offsets = star_offsets(distances)
    y, x = offsets.detach().flatten().reshape(3, 3, 2).unbind(2)
    rows = y + torch.tensor([[-1.0], [0], [1]])
    torch.testing.assert_close(rows, torch.tensor([[-3.0], [0], [7]]).expand(3, 3))
    columns = x + torch.tensor([-1.0, 0, 1])
    torch.testing.assert_close(columns, torch.tensor([-2.0, 0, 5]).expand(3, 3))
    offsets.sum().backward()
    assert distances.grad is not None
    torch.testing.assert_close(distances.grad.flatten(), torch.tensor([-0.3, -0.3, 0.3, 0.3]))


@pytest.mark.slow
def test_it_learns() -> None:
    assert_learns("vfnet", anchor_sizes=(32, 64))


def test_the_star_has_the_unit_of_each_level() -> None:
    model = tiny_model("vfnet", anchor_sizes=(64, 48))  # strides 8 and 16
    assert model.get_submodule("head.regression_head").sides == (8.0, 3.0)


@pytest.mark.parametrize("family", ["tood", "vfnet"])
def test_as_many_squares_as_levels(family: str) -> None:
    model = tiny_model(family, anchor_sizes=(64,))
    with pytest.raises(ValueError, match="2"):
        model(*scene())
