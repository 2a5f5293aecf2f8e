# SPDX-License-Identifier: BSD-3-Clause
"""Cascade R-CNN beside a reference with loops over images, stages, boxes and classes, in float64.

The reference samples all proposals, so that nothing is random. It shares with the model only the
networks' weights and torchvision's RoIAlign.
"""

import copy
import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align

from fastdet.models import (
    Batch,
    CascadeMaskRCNN,
    CascadeRCNN,
    FasterRCNN,
    cascade_rcnn_parts,
    replace_classes,
)
from fastdet.models.cascade_rcnn import CascadeRoIHeads
from fastdet.models.faster_rcnn import FirstStage
from fastdet.models.roi_heads import ClassAgnosticPredictor, FastRCNNPredictor

from .scenes import NUM_CLASSES, named, scene, small_model, spread_scores, tiny_model

Box = list[float]

STAGES = ((0.5, (10, 10, 5, 5)), (0.6, (20, 20, 10, 10)), (0.7, (30, 30, 15, 15)))
SMALL: dict[str, Any] = {
    "representation_size": 16,
    "rpn_post_nms_top_n_train": 30,
    "rpn_post_nms_top_n_test": 30,
    # All proposals are sampled.
    "rpn_batch_size_per_image": 20_000,
    "box_batch_size_per_image": 1000,
    "box_positive_fraction": 1.0,
}


class Given(NamedTuple):
    """A model in float64, and the outputs of its first stage, without gradients."""

    model: Any
    batch: Batch
    first: FirstStage


def given(family: str = "cascade_rcnn", **numbers: Any) -> Given:
    model = spread_scores(small_model(family, **(SMALL | numbers))).double()
    images, targets = scene()
    for name, parameter in model.named_parameters():
        if name.endswith("box_predictor.bbox_pred.weight"):
            parameter.data /= 20  # boxes move, but not away from the objects
    batch = model.pad([image.double() for image in images], targets)
    with torch.no_grad():
        outputs = model.outputs(batch)
    first = outputs._replace(features=[x.requires_grad_() for x in outputs.features])
    assert bool((outputs.counts > 10).all())
    # Half of the proposals come from the objects, so that each stage has positives to refine.
    generator = torch.Generator().manual_seed(4)
    found = outputs.proposals.clone()
    for of_image, gt, count in zip(found, batch.gt_boxes, batch.gt_counts.tolist(), strict=True):
        if count:
            noise = torch.randn(15, 4, generator=generator, dtype=torch.float64)
            of_image[:15] = (gt[torch.arange(15) % count] + 2 * noise).clamp(min=0)
    return Given(model, batch, first._replace(proposals=found))


# ---- the reference -------------------------------------------------------------------------------


def box_iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def encoded(box: Box, proposal: Box, weights: tuple[int, ...]) -> list[float]:
    (x, y, w, h), (px, py, pw, ph) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (box, proposal)
    )
    plain = ((x - px) / pw, (y - py) / ph, math.log(w / pw), math.log(h / ph))
    return [weight * value for weight, value in zip(weights, plain, strict=True)]


def decoded(deltas: list[float], box: Box, weights: tuple[int, ...], size: list[int]) -> Box:
    """Clipped to the image's height and width."""
    dx, dy, dw, dh = (value / weight for value, weight in zip(deltas, weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    width *= math.exp(min(dw, math.log(1000 / 16)))
    height *= math.exp(min(dh, math.log(1000 / 16)))
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [
        min(max(c, 0.0), limit) for c, limit in zip(corners, (size[1], size[0]) * 2, strict=True)
    ]


def pooled(features: list[Tensor], image: int, boxes: list[Box], side: int) -> Tensor:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=side, sampling_ratio=2)
    levels = {str(level): x[image : image + 1] for level, x in enumerate(features[:4])}
    padded = [(4 * features[0].shape[2], 4 * features[0].shape[3])]
    return pool(levels, [torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)], padded)


def box_head(stage: Any, features: list[Tensor], image: int, boxes: list[Box]) -> list[Tensor]:
    """Logits (K, C) and deltas (K, 4)."""
    x = pooled(features, image, boxes, 7).flatten(1)
    x = F.relu(stage.box_head.fc7(F.relu(stage.box_head.fc6(x))))
    return [stage.box_predictor.cls_score(x), stage.box_predictor.bbox_pred(x)]


def mask_bce(stage: Any, g: Given, image: int, box: Box, row: int) -> Tensor:
    """The mean loss of a positive's 28 x 28 mask pixels."""
    logits = stage.mask_predictor(stage.mask_head(pooled(g.first.features, image, [box], 14)))
    assert g.batch.gt_masks is not None
    rois = torch.tensor([[0, *box]], dtype=torch.float64)
    target = roi_align(g.batch.gt_masks[image, row].double()[None, None], rois, 28, 1.0)[0, 0]
    label = int(g.batch.gt_labels[image, row])
    return F.binary_cross_entropy_with_logits(logits[0, label], target)


def rows_of(padded: Tensor, counts: Tensor) -> list[list[Any]]:
    return [of_image[:n].tolist() for of_image, n in zip(padded, counts.tolist(), strict=True)]


def losses_of(g: Given) -> dict[str, Tensor]:
    """The losses, without their weights."""
    gt_boxes = rows_of(g.batch.gt_boxes, g.batch.gt_counts)
    gt_labels = rows_of(g.batch.gt_labels, g.batch.gt_counts)
    proposals = rows_of(g.first.proposals, g.first.counts)
    losses: dict[str, Tensor] = {}
    for i, (stage, (threshold, weights)) in enumerate(
        zip(g.model.roi_heads.stages, STAGES, strict=True)
    ):
        number, classifier, box_reg, masks, refined = 0, [], [], [], []
        for image, (of_image, gt, labels) in enumerate(
            zip(proposals, gt_boxes, gt_labels, strict=True)
        ):
            refined.append([])
            boxes = of_image + gt
            for k, (logits, deltas) in enumerate(
                zip(*box_head(stage, g.first.features, image, boxes), strict=True)
            ):
                ious = [box_iou(boxes[k], box) for box in gt]
                best = max(range(len(gt)), key=ious.__getitem__) if gt else 0
                positive = bool(gt) and ious[best] >= threshold
                number += 1
                classifier.append(-logits.log_softmax(0)[labels[best] if positive else 0])
                if positive:
                    for d, target in zip(deltas, encoded(gt[best], boxes[k], weights), strict=True):
                        off = (d - target).abs()
                        box_reg.append(off - 1 / 18 if off > 1 / 9 else off**2 / 2 * 9)
                    if stage.learns_masks:
                        masks.append(mask_bce(stage, g, image, boxes[k], best))
                if k < len(of_image):
                    size = g.batch.sizes[image].tolist()
                    refined[-1].append(decoded(deltas.tolist(), boxes[k], weights, size))
        assert len(box_reg) > 20  # the stage learns from refined boxes, too
        losses[f"loss_classifier_{i}"] = torch.stack(classifier).sum() / number
        losses[f"loss_box_reg_{i}"] = torch.stack(box_reg).sum() / number
        if masks:
            losses["loss_mask"] = torch.stack(masks).mean()
        proposals = refined
    return losses


def detections_of(g: Given, score_threshold: float) -> list[list[tuple[float, int, Box]]]:
    """For each image its detections, best first: score, label, box."""
    found = []
    for image, boxes in enumerate(rows_of(g.first.proposals, g.first.counts)):
        size = g.batch.sizes[image].tolist()
        scores = torch.zeros(len(boxes), NUM_CLASSES, dtype=torch.float64)
        for stage, (_, weights) in zip(g.model.roi_heads.stages, STAGES, strict=True):
            logits, deltas = box_head(stage, g.first.features, image, boxes)
            scores += logits.softmax(1) / len(STAGES)
            boxes = [
                decoded(of_box, box, weights, size)
                for of_box, box in zip(deltas.tolist(), boxes, strict=True)
            ]
        kept: list[tuple[float, int, Box]] = []
        candidates = [
            (float(scores[k, label]), label, box)
            for k, box in enumerate(boxes)
            for label in range(1, NUM_CLASSES)
            if scores[k, label] > score_threshold and min(box[2] - box[0], box[3] - box[1]) >= 0.01
        ]
        for score, label, box in sorted(candidates, key=lambda one: -one[0]):
            if not any(label == other and box_iou(box, at) > 0.5 for _, other, at in kept):
                kept.append((score, label, box))
        found.append(kept[:100])
    return found


# ---- the model beside it -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["cascade_rcnn", "cascade_mask_rcnn"])
def test_losses_and_gradients_are_those_of_the_reference(family: str) -> None:
    """Gradients are equal only if none flows from a stage into the boxes of the stage before."""
    g = given(family)
    heads = g.model.roi_heads
    results = []
    for losses in (
        heads.losses(g.first.features, g.first.proposals, g.first.counts, g.batch),
        losses_of(g),
    ):
        leaves = [*heads.parameters(), *g.first.features[:4]]
        gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), leaves)
        results.append((losses, gradients))
    (losses, gradients), (expected, expected_gradients) = results
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-9, atol=1e-12)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-9)


def test_detections_are_those_of_the_reference() -> None:
    g = given(box_score_thresh=0.3)
    g.model.eval()
    with torch.no_grad():
        found = g.model.detections_of(g.first, g.batch)
        expected = detections_of(g, 0.3)
    assert found.counts.tolist() == [len(of_image) for of_image in expected]
    assert min(found.counts.tolist()) > 5
    for i, of_image in enumerate(expected):
        scores, labels, boxes = (list(column) for column in zip(*of_image, strict=True))
        count = len(scores)
        assert found.labels[i, :count].tolist() == labels
        for mine, theirs in ((found.scores, scores), (found.boxes, boxes)):
            assert mine.dtype == torch.float64
            theirs = torch.tensor(theirs, dtype=torch.float64)
            torch.testing.assert_close(mine[i, :count], theirs, rtol=1e-9, atol=1e-9)


def test_masks_are_those_of_the_last_boxes() -> None:
    g = given("cascade_mask_rcnn", box_score_thresh=0.3)
    g.model.eval()
    stage = g.model.roi_heads.stages[-1]
    with torch.no_grad():
        found = g.model.detections_of(g.first, g.batch)
        for i, count in enumerate(found.counts.tolist()):
            x = pooled(g.first.features, i, found.boxes[i, :count].tolist(), 14)
            expected = stage.mask_predictor(stage.mask_head(x)).sigmoid()
            expected = expected[torch.arange(count), found.labels[i, :count]]
            torch.testing.assert_close(found.masks[i, :count], expected)
    assert min(found.counts.tolist()) > 5


def test_one_stage_is_faster_rcnn_with_class_agnostic_deltas() -> None:
    numbers: dict[str, Any] = {"representation_size": 16}
    cascade = small_model(
        "cascade_rcnn",
        stage_iou_thresholds=(0.5,),
        stage_bbox_reg_weights=((10.0, 10.0, 5.0, 5.0),),
        stage_loss_weights=(1.0,),
        **numbers,
    )
    predictor = ClassAgnosticPredictor(16, NUM_CLASSES)
    faster = small_model("faster_rcnn", box_predictor=predictor, **numbers)
    weights = spread_scores(cascade).state_dict()
    faster.load_state_dict({k.replace("stages.0.", ""): v for k, v in weights.items()})
    results = []
    for model in (cascade, faster):
        torch.manual_seed(2)  # the same samples
        losses = {name.removesuffix("_0"): loss for name, loss in model(*scene()).items()}
        torch.stack(list(losses.values())).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        with torch.no_grad():
            model.eval()
            results.append((losses, gradients, named(model.detect(model.pad(scene()[0])))))
    (losses, gradients, found), (expected, expected_gradients, expected_found) = results
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert torch.equal(losses[name], loss), name
    assert all(map(torch.equal, gradients, expected_gradients))
    assert bool((expected_found["counts"] > 5).all())
    for name, value in expected_found.items():
        # The logarithm of a softmax rounds.
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_deltas_of_each_class_move_the_box_of_the_most_probable_class() -> None:
    g = given(box_score_thresh=0.3)
    expected = g.model.eval().detections_of(g.first, g.batch)
    for stage in g.model.roi_heads.stages:
        own = stage.box_predictor
        of_each = FastRCNNPredictor(16, NUM_CLASSES).double()
        of_each.cls_score = own.cls_score
        of_each.bbox_pred.weight.data = own.bbox_pred.weight.repeat(NUM_CLASSES, 1)
        of_each.bbox_pred.bias.data = own.bbox_pred.bias.repeat(NUM_CLASSES)
        stage.box_predictor = of_each
    same = g.model.detections_of(g.first, g.batch)
    for mine, theirs in zip(same[:4], expected[:4], strict=True):
        torch.testing.assert_close(mine, theirs)
    first = g.model.roi_heads.stages[0]
    label = first(g.first.features, g.first.proposals, g.first.counts)[0][0, 0, 1:].argmax() + 1
    first.box_predictor.bbox_pred.bias.data.view(NUM_CLASSES, 4)[label] += 5
    moved = g.model.detections_of(g.first, g.batch)
    assert not torch.equal(moved.boxes, expected.boxes)


# ---- its numbers ---------------------------------------------------------------------------------


def test_each_stage_has_a_loss_weight() -> None:
    results = []
    for weights in ((1.0, 1.0, 1.0), (1.0, 0.5, 3.0), None):
        numbers = {} if weights is None else {"stage_loss_weights": weights}
        model = small_model("cascade_rcnn", representation_size=16, **numbers)
        torch.manual_seed(2)
        results.append(model(*scene()))
    plain, weighted, default = results
    for name, loss in plain.items():
        stage = int(name[-1]) if name[-1] in "012" else 0
        torch.testing.assert_close(weighted[name], (1.0, 0.5, 3.0)[stage] * loss)
        torch.testing.assert_close(default[name], (1.0, 0.5, 0.25)[stage] * loss)


def test_refined_ground_truth_is_no_proposal() -> None:
    """A stage that adds the ground truth of a batch without proposals passes nothing on."""
    g = given()
    seen = []
    for stage in g.model.roi_heads.stages:
        sample_among = stage.sample_among

        def noted(proposals: Tensor, real: Tensor, batch: Batch, original: Any = sample_among):
            seen.append(int(real.sum()))
            return original(proposals, real, batch)

        stage.sample_among = noted
    g.model.roi_heads.losses(g.first.features, g.first.proposals, g.first.counts * 0, g.batch)
    assert seen == [0, 0, 0]


def test_other_classes_change_the_scores_of_all_stages_alone() -> None:
    model = small_model("cascade_mask_rcnn", representation_size=16)
    before = copy.deepcopy(model.state_dict())
    replace_classes(model, 7)
    assert model.num_classes == model.roi_heads.num_classes == 7  # type: ignore[union-attr]
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    scores = {f"roi_heads.stages.{i}.box_predictor.cls_score" for i in range(3)}
    masks = {"roi_heads.stages.2.mask_predictor.mask_fcn_logits"}
    layers = {name.rpartition(".")[0] for name in changed}
    assert layers == scores | masks
    model.get_submodule("roi_heads.stages.1.box_predictor.bbox_pred")
    spread_scores(model)
    images, targets = scene()
    assert all(bool(loss.isfinite()) for loss in model(images, targets).values())
    assert {int(label) for one in model.eval()(images) for label in one["labels"]} <= set(range(7))


def test_wrong_stages_are_named() -> None:
    model = small_model("cascade_mask_rcnn", representation_size=16)
    assert isinstance(model, CascadeMaskRCNN)
    assert isinstance(model, CascadeRCNN)
    assert isinstance(model, FasterRCNN)
    backbone = nn.Identity()
    with pytest.raises(ValueError, match="expected one of each for every stage, got 3, 3, 2"):
        cascade_rcnn_parts(backbone, 3, stage_loss_weights=(1.0, 0.5))
    with pytest.raises(ValueError, match="stages: expected at least one, got none"):
        CascadeRoIHeads([])
    stages = list(model.roi_heads.stages)
    with pytest.raises(ValueError, match="mask head at most in the last of 3, got one in stage 0"):
        CascadeRoIHeads(stages[::-1])
    with pytest.raises(TypeError, match="box_head: a cascade has one for each stage: give Cascade"):
        small_model("cascade_rcnn", box_head=nn.Identity())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_fg_iou_thresh": 0.7}, "box_fg_iou_thresh: .*give stage_iou_thresholds"),
        ({"bbox_reg_weights": (10.0,) * 4}, "give stage_bbox_reg_weights"),
        ({"stage_iou_thresholds": (0.5, 0.6, 1.7)}, r"numbers in \(0, 1\], got 1.7"),
        ({"stage_bbox_reg_weights": (10.0, 10.0, 5.0)}, "four numbers for each stage, got 10.0"),
    ],
)
def test_numbers_of_stages_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tiny_model("cascade_rcnn", **options)
