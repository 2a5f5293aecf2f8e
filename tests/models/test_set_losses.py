# SPDX-License-Identifier: BSD-3-Clause
"""The losses of queries: against their definition in plain float64, and transformers' losses."""

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdet.models import Batch
from fastdet.models.set_losses import (
    MatchingCosts,
    SetTargets,
    focal_loss,
    iou_aware_loss,
    matched,
    most_common,
    query_losses,
    set_targets,
    softmax_loss,
    summed_over_layers,
)
from tests import reference

LAYERS, IMAGES, QUERIES, COLUMNS = 3, 3, 5, 4
COUNTS = [3, 0, 1]
SOFTMAX = MatchingCosts(cost_class=1.0, kind="softmax")
KINDS = {
    "softmax": (functools.partial(softmax_loss, no_object_weight=0.1), SOFTMAX),
    "focal": (focal_loss, MatchingCosts()),
    "iou_aware": (iou_aware_loss, MatchingCosts()),
}


def predictions() -> tuple[Tensor, Tensor]:
    """Logits (L, B, Q, C) and boxes (L, B, Q, 4), float64, with gradients."""
    generator = torch.Generator().manual_seed(3)
    shape = (LAYERS, IMAGES, QUERIES)
    logits = torch.randn(*shape, COLUMNS, generator=generator, dtype=torch.float64)
    boxes = torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
    boxes = torch.cat((0.2 + 0.6 * boxes[..., :2], 0.05 + 0.3 * boxes[..., 2:]), dim=-1)
    return logits.requires_grad_(), boxes.requires_grad_()


def ground_truth(junk: float = 0.0) -> SetTargets:
    """Labels from 1 on; rows beyond a count hold `junk`."""
    generator = torch.Generator().manual_seed(4)
    boxes = 0.1 + 0.4 * torch.rand(IMAGES, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, COLUMNS, (IMAGES, 4), generator=generator)
    counts = torch.tensor(COUNTS)
    beyond = torch.arange(4) >= counts[:, None]
    boxes = boxes.where(~beyond[..., None], junk)
    return SetTargets(labels.where(~beyond, 1), boxes, counts, counts.sum())


def xyxy(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def giou(a: list[float], b: list[float]) -> float:
    rows = (torch.tensor([xyxy(x)], dtype=torch.float64) for x in (a, b))
    return 1 - float(reference.box_iou_loss(*rows, "generalized", eps=0.0)[0])


def cost(kind: str, logits: list[float], box: list[float], label: int, gt: list[float]) -> float:
    if kind == "softmax":
        total = sum(math.exp(x) for x in logits)
        of_class = -math.exp(logits[label]) / total
    else:
        p = 1 / (1 + math.exp(-logits[label]))
        of_class = 2 * (
            0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
        )
    distance = sum(abs(x - y) for x, y in zip(box, gt, strict=True))
    return of_class + 5 * distance - 2 * giou(box, gt)


def best_matching(kind: str, layer: int, image: int) -> list[int]:
    """The gt of each query, or -1: the cheapest of all matchings."""
    logits, boxes = (x[layer, image].tolist() for x in predictions())
    targets, count = ground_truth(), COUNTS[image]
    labels, gts = targets.labels[image].tolist(), targets.boxes[image].tolist()

    def total(queries: tuple[int, ...]) -> float:
        return sum(
            cost(kind, logits[q], boxes[q], labels[g], gts[g]) for g, q in enumerate(queries)
        )

    chosen = min(itertools.permutations(range(QUERIES), count), key=total)
    return [chosen.index(q) if q in chosen else -1 for q in range(QUERIES)]


def expected(name: str, layer: int, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """The losses of a layer, query by query; differentiable."""
    targets, kind = ground_truth(), KINDS[name][1].kind
    zero = torch.zeros((), dtype=torch.float64)
    classes, distances, overlaps, weights = zero, zero, zero, 0.0
    for image in range(IMAGES):
        for query, g in enumerate(best_matching(kind, layer, image)):
            own, box = logits[layer, image, query], boxes[layer, image, query]
            label, quality = (int(targets.labels[image, g]), 0.0) if g >= 0 else (None, 0.0)
            if g >= 0:
                gt = targets.boxes[image, g]
                distances = distances + (box - gt).abs().sum()
                rows = [torch.stack([x[0] - x[2] / 2, x[1] - x[3] / 2, x[0] + x[2] / 2,
                                     x[1] + x[3] / 2])[None] for x in (box, gt)]  # fmt: skip
                overlaps = overlaps + reference.box_iou_loss(*rows, "generalized", eps=0.0)[0]
                quality = reference.iou(*(row[0].tolist() for row in rows))
            if name == "softmax":
                weight = 0.1 if label is None else 1.0
                classes = classes - weight * own.log_softmax(0)[0 if label is None else label]
                weights += weight
                continue
            p = own.sigmoid()
            for column in range(COLUMNS):
                right = column == label
                if name == "focal":
                    q = p[column] if right else 1 - p[column]
                    classes = classes - (0.25 if right else 0.75) * (1 - q) ** 2 * q.log()
                elif right:
                    entropy = quality * p[column].log() + (1 - quality) * (1 - p[column]).log()
                    classes = classes - quality * entropy
                else:
                    factor = 0.75 * float(p[column].detach()) ** 2
                    classes = classes - factor * (1 - p[column]).log()
    number = sum(COUNTS)
    return {
        "classification": classes / (weights if name == "softmax" else number),
        "bbox_regression": distances / number,
        "bbox_giou": overlaps / number,
    }


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_gradients_are_those_of_the_definition(name: str) -> None:
    classification, costs = KINDS[name]
    logits, boxes = predictions()
    match = matched(logits, boxes, ground_truth(), costs)
    found = query_losses(logits, boxes, match, ground_truth(), classification)
    for layer in range(LAYERS):
        for image in range(IMAGES):
            assert match[layer, image].tolist() == best_matching(costs.kind, layer, image)
        for loss, value in expected(name, layer, logits, boxes).items():
            torch.testing.assert_close(found[loss][layer], value, msg=f"{loss} {layer}")
            inputs = (logits, boxes)
            ours, theirs = (
                torch.autograd.grad(x, inputs, retain_graph=True, allow_unused=True)
                for x in (found[loss][layer], value)
            )
            for own, other in zip(ours, theirs, strict=True):
                other = torch.zeros(()) if other is None else other
                own = torch.zeros_like(other) if own is None else own
                torch.testing.assert_close(own, other.to(own).expand_as(own), msg=loss)


@pytest.mark.parametrize("name", KINDS)
def test_rows_beyond_a_count_change_nothing(name: str) -> None:
    classification, costs = KINDS[name]
    results = []
    for junk in (0.0, -1e4):
        logits, boxes = predictions()
        targets = ground_truth(junk)
        match = matched(logits, boxes, targets, costs)
        losses = query_losses(logits, boxes, match, targets, classification)
        torch.stack([*losses.values()]).sum().backward()
        results.append([*losses.values(), logits.grad, boxes.grad])
    for own, other in zip(*results, strict=True):
        assert torch.equal(own, other)


def test_the_last_layer_counts_in_full() -> None:
    losses = {"a": torch.tensor([1.0, 2.0, 4.0])}
    assert summed_over_layers(losses)["a"] == 7
    assert summed_over_layers(losses, aux_weight=0.5)["a"] == 5.5
    assert summed_over_layers({"a": torch.tensor([3.0])})["a"] == 3


def test_a_gt_may_be_learned_by_several_queries() -> None:
    """As in denoising: every query of image 0 has gt 1, and the number counts it as often."""
    logits, boxes = predictions()
    targets = ground_truth()
    match = torch.full((LAYERS, IMAGES, QUERIES), -1)
    match[:, 0] = 1
    targets = targets._replace(number=torch.tensor(QUERIES))
    losses = query_losses(logits, boxes, match, targets, focal_loss)
    gt = targets.boxes[0, 1]
    means = (boxes[:, 0] - gt).abs().sum(-1).mean(-1)
    torch.testing.assert_close(losses["bbox_regression"], means)


def test_the_gt_that_most_layers_give() -> None:
    match = torch.tensor([[2, -1, 0, 0, -1], [1, -1, 3, 1, 4], [1, -1, 3, 2, -1]])[:, None]
    assert most_common(match).tolist() == [[1, -1, 3, 2, 4]]  # of equals, the last layer's


def test_targets_are_fractions_of_the_image_without_its_padding() -> None:
    batch = Batch(
        images=torch.zeros(1, 3, 64, 128),
        sizes=torch.tensor([[50, 100]]),
        gt_boxes=torch.tensor([[[10.0, 5, 30, 45]]]),
        gt_labels=torch.tensor([[2]]),
        gt_counts=torch.tensor([0]),
    )
    targets = set_targets(batch, first_label=1)
    assert targets.boxes.tolist() == [[pytest.approx([0.2, 0.5, 0.2, 0.8])]]
    assert targets.labels.tolist() == [[1]]
    assert targets.number == 1  # never 0
    whole = set_targets(batch, sizes=torch.tensor([[64, 128]]))
    assert whole.boxes.tolist() == [[pytest.approx([20 / 128, 25 / 64, 20 / 128, 40 / 64])]]


@pytest.mark.parametrize("name", KINDS)
def test_no_value_is_read(name: str) -> None:
    classification, costs = KINDS[name]
    logits, boxes = predictions()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x) for x in (logits, boxes, *ground_truth())]
        targets = SetTargets(*fakes[2:])
        match = matched(fakes[0], fakes[1], targets, costs)
        losses = query_losses(fakes[0], fakes[1], match, targets, classification)
    assert [loss.shape for loss in losses.values()] == [(LAYERS,)] * 3


# ---- transformers' losses ------------------------------------------------------------------------


def lists(first_label: int) -> list[dict[str, Tensor]]:
    targets = ground_truth()
    return [
        {"class_labels": labels[:count] - first_label, "boxes": boxes[:count]}
        for labels, boxes, count in zip(targets.labels, targets.boxes, COUNTS, strict=True)
    ]


def theirs(name: str, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """transformers' losses of one layer."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("scipy", reason="transformers' matchers need SciPy")
    from transformers.loss import loss_deformable_detr, loss_for_object_detection, loss_rt_detr

    outputs = {"logits": logits, "pred_boxes": boxes}
    if name == "iou_aware":
        config = transformers.RTDetrConfig(
            id2label={i: str(i) for i in range(COLUMNS)},
            weight_loss_bbox=1.0, weight_loss_giou=1.0,
        )  # fmt: skip
        return loss_rt_detr.RTDetrLoss(config)(outputs, lists(0))
    parts: Any = {
        "softmax": (
            loss_for_object_detection.HungarianMatcher(1, 5, 2),
            functools.partial(
                loss_for_object_detection.ImageLoss, num_classes=COLUMNS - 1, eos_coef=0.1
            ),
        ),
        "focal": (
            loss_deformable_detr.DeformableDetrHungarianMatcher(2, 5, 2),
            functools.partial(
                loss_deformable_detr.DeformableDetrImageLoss, num_classes=COLUMNS, focal_alpha=0.25
            ),
        ),
    }
    matcher, criterion = parts[name]
    if name == "softmax":  # there background is the last column
        outputs["logits"] = logits.roll(-1, dims=-1)
    return criterion(matcher=matcher, losses=["labels", "boxes"]).double()(
        outputs, lists(int(name == "softmax"))
    )


NAMES = {
    "classification": {"softmax": "loss_ce", "focal": "loss_ce", "iou_aware": "loss_vfl"},
    "bbox_regression": dict.fromkeys(KINDS, "loss_bbox"),
    "bbox_giou": dict.fromkeys(KINDS, "loss_giou"),
}


@pytest.mark.parametrize("name", KINDS)
def test_losses_are_those_of_transformers(name: str) -> None:
    classification, costs = KINDS[name]
    logits, boxes = (x.detach() for x in predictions())
    targets = ground_truth()
    found = query_losses(
        logits, boxes, matched(logits, boxes, targets, costs), targets, classification
    )
    for layer in range(LAYERS):
        from_transformers = theirs(name, logits[layer], boxes[layer])
        for loss, value in found.items():
            expected = from_transformers[NAMES[loss][name]]
            torch.testing.assert_close(value[layer], expected.to(value), msg=loss)
