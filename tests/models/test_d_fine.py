# SPDX-License-Identifier: BSD-3-Clause
"""D-FINE: its distributions and their losses by hand; it learns. See also the conversion."""

import math
from typing import Any

import pytest
import torch

from fastdet.models import d_fine
from fastdet.models.d_fine import DFINEHead, Gate, Sharpness
from fastdet.models.distribution_boxes import bin_moves, bin_targets, moved_boxes
from fastdet.models.distribution_losses import distillation_losses, localization_losses

BINS = 8
MOVES = bin_moves(BINS, 0.5, 4.0)
BOXES = torch.tensor([[[0.5, 0.4, 0.2, 0.1], [0.3, 0.6, 0.4, 0.2]]])


def test_moves_of_the_bins() -> None:
    """The paper's weighting function with a = 1/2 and c = 1/4, divided by 4."""
    base = 3 ** (1 / 3)
    outwards = [(base - 1) / 4, (base**2 - 1) / 4, 0.5, 1.0]
    expected = [-x for x in reversed(outwards)] + [0.0, *outwards]
    torch.testing.assert_close(MOVES, torch.tensor(expected))
    assert len(bin_moves(32, 0.5, 8.0)) == 33
    for arguments, message in (
        ((7, 0.5, 4.0), "bins: expected an even number from 4 on, got 7"),
        ((2, 0.5, 4.0), "bins: .* got 2"),
        ((8, 0.0, 4.0), "reach: expected a number above 0, got 0.0"),
        ((8, 0.5, -1.0), "steepness: expected a number above 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            bin_moves(*arguments)


def sure_of(*bins: int) -> torch.Tensor:
    """Logits (4, BINS + 1) of sides that are sure of a bin."""
    return 100.0 * torch.nn.functional.one_hot(torch.tensor(bins), BINS + 1)


def test_sides_move_by_what_their_distributions_expect() -> None:
    logits = torch.stack([sure_of(4, 7, 4, 1), sure_of(0, 0, 0, 0)])[None]
    moved = moved_boxes(BOXES, logits, MOVES)
    # Left and right stay; the top goes up and the bottom up by half the height.
    torch.testing.assert_close(moved[0, 0], torch.tensor([0.5, 0.35, 0.2, 0.1]))
    # All sides go inwards by a whole side, past each other.
    torch.testing.assert_close(moved[0, 1], torch.tensor([0.3, 0.6, 0.0, 0.0]))
    between = torch.zeros(1, 2, 4, BINS + 1)
    between[..., 4:6] = 50.0  # half of bin 4, half of bin 5
    wider = float(BOXES[0, 0, 2] * (1 + MOVES[5]))
    torch.testing.assert_close(moved_boxes(BOXES, between, MOVES)[0, 0, 2], torch.tensor(wider))


def test_targets_lie_between_two_bins_and_lead_back_to_the_box() -> None:
    gt_boxes = torch.tensor([[[0.52, 0.38, 0.25, 0.12], [0.9, 0.6, 0.1, 0.19]]])
    lower, share = bin_targets(BOXES, gt_boxes, MOVES)
    assert lower.shape == share.shape == (1, 2, 4)
    weights = torch.zeros(1, 2, 4, BINS + 1)
    weights.scatter_(3, lower[..., None], 1 - share[..., None])
    weights.scatter_add_(3, lower[..., None] + 1, share[..., None])
    moved = moved_boxes(BOXES, weights.log().clamp(min=-1e4), MOVES)
    torch.testing.assert_close(moved[:, 0], gt_boxes[:, 0])
    # Of the second box the left side is too far away inwards, and the right one outwards.
    assert (int(lower[0, 1, 0]), float(share[0, 1, 0])) == (0, 0.0)
    assert (int(lower[0, 1, 2]), float(share[0, 1, 2])) == (BINS - 1, 1.0)


def some_logits(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*shape, BINS + 1, generator=generator, dtype=torch.float64)


def test_the_localization_loss_by_its_definition() -> None:
    logits = some_logits(3, 1, 2, 4)
    gt_boxes = torch.tensor([[[0.52, 0.38, 0.25, 0.12], [0.3, 0.6, 0.4, 0.2]]])
    ious = torch.tensor([[[0.5, 0.0]], [[0.25, 0.0]], [[1.0, 0.0]]])
    losses = localization_losses(logits, BOXES, gt_boxes, ious, MOVES, torch.tensor(2))
    lower, share = bin_targets(BOXES, gt_boxes, MOVES)
    for layer in range(3):
        total = 0.0
        for side in range(4):
            scores = logits[layer, 0, 0, side].log_softmax(0)
            bin_, part = int(lower[0, 0, side]), float(share[0, 0, side])
            total -= (1 - part) * float(scores[bin_]) + part * float(scores[bin_ + 1])
        assert float(losses[layer]) == pytest.approx(total * float(ious[layer, 0, 0]) / 2)


def test_the_distillation_loss_by_its_definition() -> None:
    """Of three queries one is matched and one is not used."""
    logits, class_logits = some_logits(3, 1, 3, 4).requires_grad_(), some_logits(1, 3)
    ious = torch.full((3, 1, 3), 0.7)
    rows = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    losses = distillation_losses(logits, class_logits, ious, *rows)
    by_layer = losses.tolist()
    certain = float(class_logits[0, 1].sigmoid().max())
    for layer in range(2):
        means = []
        for query, weight in ((0, 0.7), (1, certain)):
            total = 0.0
            for side in range(4):
                student, teacher = (
                    (logits[i, 0, query, side] / 5).softmax(0).tolist() for i in (layer, 2)
                )
                total += sum(t * math.log(t / s) for s, t in zip(student, teacher, strict=True))
            means.append(25 * weight * total / 4)
        assert by_layer[layer] == pytest.approx(sum(means) / 2)  # both have 4 distributions
    losses.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[2].any()  # the teacher learns nothing
    assert not logits.grad[:, 0, 2].any()
    nobody = torch.zeros(1, 3, dtype=torch.bool)
    assert not distillation_losses(logits, class_logits, ious, nobody, nobody).any()


def test_gates_and_sharpness_at_the_start() -> None:
    first, second = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    gate = Gate(16)
    torch.testing.assert_close(gate(first, second), gate.norm((first + second) / 2))
    sharpness = Sharpness(highest=2, channels=4)
    assert not sharpness(some_logits(1, 5, 4).float()).any()
    last: Any = sharpness.network.layers[-1]
    torch.nn.init.ones_(last.weight)
    logits = torch.zeros(1, 5, 4, BINS + 1)
    logits[:, 1:] = sure_of(1, 2, 3, 4)
    found = sharpness(logits).detach()
    assert found.shape == (1, 5, 1)
    assert float((found[0, 1:] - found[0, 0]).abs().min()) > 1e-3


def test_points_of_each_level() -> None:
    counts = [
        (levels, DFINEHead(16, 3, levels, layers=1, **numbers).layers[0])
        for levels, numbers in ((3, {}), (2, {}), (2, {"points": (1, 2)}))
    ]
    scales = [
        head.get_submodule("layer.cross_attention").get_buffer("scales").flatten()
        for _, head in counts
    ]
    assert [(0.5 / scale).tolist() for scale in scales] == [[3, 6, 3], [6, 6], [1, 2]]
    with pytest.raises(ValueError, match=r"points: expected one number for each of 2 levels"):
        DFINEHead(16, 3, 2, points=(1, 2, 3))


def test_the_builder_follows_the_backbone() -> None:
    models = [d_fine(name, 3, fpn_channels=16) for name in ("resnet10t", "resnet26")]
    assert [len(model.head.layers) for model in models] == [3, 6]
    joins = [model.get_submodule("backbone.fpn.top_down.0.steps.0.0") for model in models]
    assert [join.get_submodule("first.0").out_channels for join in joins] == [4, 8]
    assert [len(list(join.get_submodule("blocks").children())) for join in joins] == [1, 3]
    other = d_fine("resnet10t", 3, fpn_channels=16, blocks=2, expansion=1.5, decoder_layers=1)
    join = other.get_submodule("backbone.fpn.top_down.0.steps.0.0")
    assert len(other.head.layers) == 1
    assert join.get_submodule("first.0").out_channels == 12
