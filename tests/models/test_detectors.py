# SPDX-License-Identifier: BSD-3-Clause
"""Typical mistakes in implementations of these heads, one test for each."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import MultiScaleRoIAlign, roi_align

from fastdet.engine import sampled_head
from fastdet.models import FCOS, Batch, FasterRCNN, MaskRCNN, faster_rcnn
from fastdet.models.anchors import pyramid_anchors
from fastdet.models.losses import box_regression_loss
from fastdet.models.roi_heads import Sample

from .scenes import named, scene, small_model, spread_scores


def small_faster_rcnn(**numbers: float) -> FasterRCNN:
    model = small_model("faster_rcnn", **numbers)
    assert isinstance(model, FasterRCNN)
    return model


def test_proposals_are_pooled_at_the_scale_of_their_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_faster_rcnn()
    features = [torch.rand(1, 16, 320 // stride, 320 // stride) for stride in (4, 8, 16, 32)]
    boxes = torch.tensor(
        [[10.0, 12, 40, 44], [30, 20, 200, 210], [5, 5, 315, 300], [100, 7, 290, 120]]
    )
    seen = []
    monkeypatch.setattr(
        model.roi_heads.box_head, "forward", lambda x: seen.append(x) or x.mean((2, 3))
    )
    monkeypatch.setattr(
        model.roi_heads.box_predictor, "forward", lambda x: (x, x.repeat_interleave(4, 1))
    )
    model.roi_heads(features, boxes[None], torch.tensor([4]))
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    named = {str(i): feature for i, feature in enumerate(features)}
    torch.testing.assert_close(seen[0], pool(named, [boxes], [(320, 320)]), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_rpn_is_computed_at_sampled_anchors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_faster_rcnn(rpn_batch_size_per_image=32)
    batch = model.pad(*scene())
    seen: list[int] = []
    run = sampled_head._gradients

    def counted(weights: Sequence[Tensor], patches: Tensor, grad: Tensor) -> Any:
        seen.append(len(patches))
        return run(weights, patches, grad)

    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(0)  # of the samples
        model.zero_grad()
        torch.stack(list(model.losses(batch).values())).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    monkeypatch.setattr(sampled_head, "_gradients", counted)
    found = gradients()
    assert len(seen) == 1
    assert 0 < seen[0] <= 3 * 32
    monkeypatch.setattr(sampled_head, "LEAST_PIXELS_FOR_ONE", torch.inf)
    expected = gradients()
    assert len(seen) == 1
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        difference = float((grad - expected[name]).norm() / expected[name].norm())
        assert difference < 1e-4, name


def test_ground_truth_joins_the_proposals() -> None:
    model = small_faster_rcnn()
    batch = model.pad(*scene())
    far_away = torch.tensor([0.0, 0, 2, 2]).expand(3, 10, 4)
    boxes, match, valid = model.roi_heads.sample(far_away, torch.full((3,), 10), batch)
    positive = valid & (match >= 0)
    assert positive.sum(dim=1).tolist() == batch.gt_counts.tolist()
    for i, count in enumerate(batch.gt_counts.tolist()):
        found = boxes[i][positive[i]]
        order = match[i][positive[i]].argsort()
        assert torch.equal(found[order], batch.gt_boxes[i, :count])


def test_proposals_beyond_the_counts_are_never_sampled() -> None:
    model = small_faster_rcnn()
    batch = model.pad(*scene())
    proposals = batch.gt_boxes[:, :1].repeat(1, 20, 1)  # all would be positive
    _, match, valid = model.roi_heads.sample(proposals, torch.tensor([5, 0, 0]), batch)
    assert valid.sum(dim=1).tolist() == [5 + 3, 1, 0]
    assert bool((match[valid] >= 0).all())


def one_proposal_each(model: FasterRCNN, deltas: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """The proposals of a 64 x 64 image if all anchors have the same deltas."""
    features = [torch.zeros(1, 16, n, n) for n in (16, 8, 4, 2, 1)]
    anchors = pyramid_anchors(torch.zeros(1, 3, 64, 64), features, model.rpn.cells)
    counts = [3 * feature.shape[2] ** 2 for feature in features]
    found = model.rpn.proposals(
        [torch.zeros(1, count) for count in counts],
        [deltas.expand(1, count, 4) for count in counts],
        anchors,
        torch.tensor([size]),
    )
    return found.boxes, found.counts


def test_proposals_that_clipping_leaves_without_a_side_are_dropped() -> None:
    model = small_faster_rcnn()
    inside = torch.zeros(4)
    boxes, counts = one_proposal_each(model, inside, [64, 64])
    assert 0 < int(counts) < boxes.shape[1]
    kept = boxes[0, : int(counts)]
    assert bool((kept[:, 2:] - kept[:, :2] >= 1e-3).all())
    assert bool((kept >= 0).all())
    assert bool((kept <= 64).all())
    outside = torch.tensor([-50.0, 0, 0, 0])  # fifty widths to the left
    _, counts = one_proposal_each(model, outside, [64, 64])
    assert int(counts) == 0
    # Boxes are clipped to the image, not to the padded batch.
    boxes, counts = one_proposal_each(model, inside, [64, 20])
    assert float(boxes[0, : int(counts), 2].max()) == 20


def test_deltas_learn_from_positive_rows_alone() -> None:
    deltas = torch.zeros(2, 3, 4, requires_grad=True)
    targets = torch.full((2, 3, 4), torch.nan)
    targets[0, 1] = 1
    positive = torch.zeros(2, 3, dtype=torch.bool)
    positive[0, 1] = True
    loss = box_regression_loss(deltas, targets, positive)
    loss.backward()
    assert loss.item() == pytest.approx(4 * (1 - 0.5 / 9))
    assert deltas.grad is not None
    assert deltas.grad[0, 1].tolist() == [-1] * 4
    assert float(deltas.grad.abs().sum()) == 4


def test_padded_samples_of_the_rpn_are_no_positives() -> None:
    model = small_faster_rcnn()
    boxes = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60], [40, 0, 60, 20]])
    gt = model.pad([torch.rand(3, 96, 96)], [{"boxes": boxes[:1], "labels": torch.tensor([1])}])
    logits = torch.tensor([[1.0, -2, 3]])
    deltas = torch.tensor([[[0.1, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9]]])
    losses = model.rpn.losses([logits], [deltas], boxes, gt)
    expected = binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0, 0]]))
    torch.testing.assert_close(losses["loss_objectness"], expected)
    assert float(losses["loss_rpn_box_reg"]) == pytest.approx(0.1**2 / 2 * 9 / 3)


def test_proposals_beyond_the_counts_are_never_detected() -> None:
    model = spread_scores(small_faster_rcnn()).eval()
    features = [torch.rand(1, 16, n, n) for n in (24, 12, 6, 3, 2)]
    proposals = torch.tensor([[[5.0, 5, 50, 50], [10, 10, 90, 90], [3, 4, 80, 20]]])
    sizes = torch.tensor([[96, 96]])
    with torch.no_grad():
        some = model.roi_heads.detect(features, proposals, torch.tensor([2]), sizes)
        alone = model.roi_heads.detect(features, proposals[:, :2], torch.tensor([2]), sizes)
        none = model.roi_heads.detect(features, proposals, torch.tensor([0]), sizes)
    assert int(alone.counts) > 0
    assert int(none.counts) == 0
    for name, value in named(alone).items():
        assert torch.equal(getattr(some, name), value), name


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_classes": 1}, "num_classes: expected at least 2, background and one class, got 1"),
        ({"size_divisor": 0}, "size_divisor: expected a number above 0, got 0"),
    ],
)
def test_bad_numbers(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        faster_rcnn("resnet18", **({"num_classes": 4} | numbers), fpn_channels=8)


def test_batch_is_a_tuple_of_tensors_for_pytrees() -> None:
    model = small_faster_rcnn()
    leaves, spec = torch.utils._pytree.tree_flatten(model.pad(*scene()))
    assert [leaf is None for leaf in leaves] == [False] * 5 + [True, False]  # no masks
    assert isinstance(torch.utils._pytree.tree_unflatten(leaves, spec), Batch)


def test_a_location_of_fcos_learns_the_smallest_box_around_it() -> None:
    model = small_model("fcos")
    assert isinstance(model, FCOS)
    boxes = torch.tensor([[10.0, 10, 62, 62], [20, 20, 52, 52], [8, 8, 64, 64]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 3])}
    batch = model.pad([torch.rand(3, 96, 96)], [target])
    anchors = torch.tensor([[32.0, 32, 40, 40], [28, 28, 44, 44]])  # at the centre of all boxes
    assert model._match(anchors, [1, 1], batch).tolist() == [[1, -1]]  # too near for level 1


def test_masks_lie_in_the_boxes_of_their_own_image() -> None:
    model = spread_scores(small_model("mask_rcnn", mask_output_size=(7, 7))).eval()
    assert isinstance(model, MaskRCNN)
    images, _ = scene()
    batch = model.pad(images)
    with torch.no_grad():
        found = model.detect(batch)
        answers = model(images)
        model.mask_threshold = None
        probabilities = model(images)
    assert found.masks is not None
    assert found.masks.shape == (3, 100, 14, 14)
    for count, masks in zip(found.counts.tolist(), found.masks, strict=True):
        assert bool((masks[:count] > 0).all())
        assert not masks[count:].any()
    for image, answer, soft in zip(images, answers, probabilities, strict=True):
        assert answer["masks"].dtype == torch.bool
        assert answer["masks"].shape == (len(answer["boxes"]), 1, *image.shape[1:])
        assert torch.equal(answer["masks"], soft["masks"] > 0.5)
        y, x = (torch.arange(side) for side in image.shape[1:])
        left, top, right, bottom = answer["boxes"][:, :, None, None].unbind(1)
        near = (x > left - 6) & (x < right + 6) & (y[:, None] > top - 6) & (y[:, None] < bottom + 6)
        assert not (answer["masks"][:, 0] & ~near).any()


def test_the_mask_head_learns_from_every_positive_and_nothing_else() -> None:
    model = small_model("mask_rcnn")
    assert isinstance(model, MaskRCNN)
    batch = model.pad(*scene())
    seen: list[Tensor] = []
    first = model.get_submodule("roi_heads.mask_head.0.0")
    hook = first.register_forward_hook(lambda _, inputs, output: seen.append(output))
    boxes = torch.cat((batch.gt_boxes[:, :3], torch.tensor([80.0, 80, 90, 90]).expand(3, 5, 4)), 1)
    match = torch.tensor([[0, 1, 2, -1, -1, -1, -1, -1], [0, *[-1] * 7], [-1] * 8])
    valid = torch.arange(8) < torch.tensor([[6], [2], [5]])
    features = model.outputs(batch).features
    loss = model.roi_heads.mask_loss(features, Sample(boxes, match, valid), batch)
    assert len(seen[0]) == 3 + 1  # the positives, and no padding
    hook.remove()
    assert batch.gt_masks is not None
    expected = []
    for image, (rows, labels) in enumerate(((range(3), (1, 3, 2)), (range(1), (2,)))):
        for row, label in zip(rows, labels, strict=True):
            rois = torch.cat((torch.zeros(1, 1), boxes[image, row][None]), 1)
            mask = batch.gt_masks[image, row].float()[None, None]
            target = roi_align(mask, rois, 28, 1.0)[0, 0]
            logits = model.roi_heads.mask_logits(
                [f[image][None] for f in features], boxes[image, row][None, None], torch.tensor([1])
            )
            expected.append(binary_cross_entropy_with_logits(logits[0, 0, label], target))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)


def test_a_batch_without_masks_is_no_lesson_for_mask_rcnn() -> None:
    model = small_model("mask_rcnn")
    batch = model.pad(*scene())
    with pytest.raises(ValueError, match="gt_masks: expected a batch with masks"):
        model.losses(batch._replace(gt_masks=None))
    images, targets = scene()
    del targets[1]["masks"]
    with pytest.raises(ValueError, match=r"target of image 1: .* missing {'masks'}"):
        model(images, targets)
