# SPDX-License-Identifier: BSD-3-Clause
"""Dense detectors written out in float64: what the tests of ATSS, VFNet and TOOD share."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models import Batch, Detections, Detector
from tests import reference

from .scenes import scene, tiny_model

LIMITS = {"topk_candidates": 25, "detections_per_img": 30}


class Candidate(NamedTuple):
    """A pair of location and class: levels rank by `rank`, suppression by `score`."""

    rank: float
    score: float
    box: list[float]
    label: int


def varied_model(family: str) -> Detector:
    """In float64, with a head whose outputs differ from place to place."""
    model = tiny_model(family, **LIMITS).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():  # type: ignore[union-attr]
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            spread = 1.5 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.3
            parameter.add_(noise * spread)
            if name.endswith("cls_logits.bias"):
                parameter.copy_(noise - 2.5)
    return model


def double_batch(model: Detector) -> Batch:
    """The scene in float64; the padding is noise, too, for no two locations to be alike."""
    images, targets = scene()
    batch = model.pad([image.double() for image in images], targets)
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(batch.images.shape, generator=generator, dtype=torch.float64)
    return batch._replace(images=noise)


def through(layers: Any, x: Tensor) -> Tensor:
    """A tower, layer by layer, from its weights alone."""
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            x = through(layer, x)
        elif isinstance(layer, nn.Conv2d):
            x = conv(layer, x)
        elif isinstance(layer, nn.GroupNorm):
            of_groups = x.reshape(len(x), layer.num_groups, -1)
            mean, var = of_groups.mean(2, keepdim=True), of_groups.var(2, False, keepdim=True)
            x = ((of_groups - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
            x = x * layer.weight[:, None, None] + layer.bias[:, None, None]
        else:
            x = {"ReLU": torch.relu, "Sigmoid": torch.sigmoid}[type(layer).__name__](x)
    return x


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)


def rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), by row and column."""
    return torch.stack([x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])], 1)


def squares(features: list[Tensor], side: float) -> list[list[list[float]]]:
    """The square of each location, by level: `side` strides wide, the first at the corner."""
    return [
        [
            [x - half, y - half, x + half, y + half]
            for y in range(0, feature.shape[2] * stride, stride)
            for x in range(0, feature.shape[3] * stride, stride)
        ]
        for feature, stride in zip(features, (8, 16), strict=True)
        for half in [side * stride / 2]
    ]


def box_at(square: list[float], distances: list[float]) -> list[float]:
    """The box whose sides lie so many sides of the square away from its centre."""
    x, y, side = (square[0] + square[2]) / 2, (square[1] + square[3]) / 2, square[2] - square[0]
    left, top, right, bottom = (distance * side for distance in distances)
    return [x - left, y - top, x + right, y + bottom]


def giou_loss(box: Tensor, gt_box: Tensor) -> Tensor:
    """With the gradient of the box."""
    return reference.box_iou_loss(box[None], gt_box[None], "generalized")[0]


def detected(
    levels: list[list[Candidate]], size: list[int], score_thresh: float, nms_thresh: float
) -> tuple[list[list[float]], list[float], list[int]]:
    """Boxes, scores and labels of one image of `size`, from the candidates of all pairs."""
    best = [
        candidate
        for level in levels
        for candidate in sorted(level, key=lambda c: -c.rank)[: LIMITS["topk_candidates"]]
        if candidate.rank > score_thresh
    ]
    height, width = size
    boxes = [
        [
            min(max(value, 0.0), limit)
            for value, limit in zip(c.box, (width, height) * 2, strict=True)
        ]
        for c in best
    ]
    scores, labels = [c.score for c in best], [c.label for c in best]
    kept = reference.nms(
        torch.tensor(boxes, dtype=torch.float64),
        torch.tensor(scores, dtype=torch.float64),
        nms_thresh,
        torch.tensor(labels),
    ).tolist()[: LIMITS["detections_per_img"]]
    return [boxes[i] for i in kept], [scores[i] for i in kept], [labels[i] for i in kept]


def assert_detected(found: Detections, expected: list[tuple[list[Any], ...]]) -> None:
    """Equal images; one fills all rows, and suppression has left out candidates."""
    counts = [len(scores) for _, scores, _ in expected]
    assert found.counts.tolist() == counts
    assert min(counts) > 5
    for i, (boxes, scores, labels) in enumerate(expected):
        n = counts[i]
        assert found.labels[i, :n].tolist() == labels
        torch.testing.assert_close(found.boxes[i, :n], found.boxes.new_tensor(boxes))
        torch.testing.assert_close(found.scores[i, :n], found.scores.new_tensor(scores))
        assert not found.boxes[i, n:].any()


def assert_learns(family: str, steps: int = 100, **numbers: Any) -> None:
    """On two pictures the loss falls to a third, and their objects are detected."""
    model = tiny_model(family, min_size=64, max_size=64, score_thresh=0.2, **numbers)
    generator = torch.Generator().manual_seed(0)
    images = [0.2 * torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    boxes = [[[4.0, 6, 30, 28], [34, 30, 60, 62]], [[20.0, 8, 52, 44]]]
    labels = [[1, 2], [3]]
    targets = []
    for image, own, classes in zip(images, boxes, labels, strict=True):
        for (x1, y1, x2, y2), label in zip(own, classes, strict=True):
            image[label - 1, int(y1) : int(y2), int(x1) : int(x2)] += 0.8
        targets.append({"boxes": torch.tensor(own), "labels": torch.tensor(classes)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = model.pad(images, targets)
    totals = []
    for _ in range(steps):
        total = torch.stack(list(model.losses(batch).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0] / 3
    with torch.no_grad():
        found = model.eval()(images)
    for answer, own, classes in zip(found, boxes, labels, strict=True):
        best = {}
        for box, label in zip(answer["boxes"].tolist(), answer["labels"].tolist(), strict=True):
            best.setdefault(label, box)
        assert set(classes) <= set(best)
        for box, label in zip(own, classes, strict=True):
            assert reference.iou(best[label], box) > 0.6, (label, best[label], box)


def assert_same_losses(
    model: Detector, losses: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Equal values, and equal gradients of each loss."""
    assert list(losses) == list(expected)
    parameters = dict(model.named_parameters())
    for loss, value in losses.items():
        torch.testing.assert_close(value, expected[loss], msg=loss)
        ours, theirs = (
            torch.autograd.grad(x, [*parameters.values()], retain_graph=True, allow_unused=True)
            for x in (value, expected[loss])
        )
        for name, own, other in zip(parameters, ours, theirs, strict=True):
            zero = torch.zeros_like(parameters[name])
            own, other = (zero if gradient is None else gradient for gradient in (own, other))
            torch.testing.assert_close(own, other, msg=f"{name} by {loss}")
