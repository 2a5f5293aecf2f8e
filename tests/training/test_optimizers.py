# SPDX-License-Identifier: BSD-3-Clause
"""Every optimiser learns what torch's own does, in groups as the options say, and resumes."""

import copy
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import nn

from fastdet.models import MODELS, retinanet
from fastdet.models.detector import Detector
from fastdet.training.optimizers import optimizer, parameter_groups
from fastdet.training.options import OptimizationOptions, Optimizer

NAMES = get_args(Optimizer)


@pytest.fixture(scope="module")
def model() -> Detector:
    numbers = {"min_size": 64, "max_size": 64, "fpn_channels": 8}
    return MODELS["faster_rcnn"]("resnet10t", 3, representation_size=8, **numbers)


def options(**changes: Any) -> OptimizationOptions:
    return OptimizationOptions(**changes)


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> Iterator[tuple[str, dict]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            yield names[id(parameter)], group


def test_the_default_is_adamw_without_decay_of_norms_and_biases(model: Detector) -> None:
    groups = parameter_groups(model, options(), 0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.05), (0.1, 0.0)]
    assert [all(p.ndim > 1 for p in group["params"]) for group in groups] == [True, False]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_decay_of_norms_too(model: Detector) -> None:
    (group,) = parameter_groups(model, options(weight_decay=0.2, decay_norms=True), 0.1)
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.2)


def test_the_backbone_learns_more_slowly_and_its_first_stages_most(model: Detector) -> None:
    groups = parameter_groups(model, options(backbone_lr=0.5, layer_decay=0.1), 1.0)
    rates = {name: group["lr"] for name, group in names_of(model, groups)}
    body = "backbone.body."
    assert rates["roi_heads.box_head.fc6.weight"] == 1.0
    assert rates["backbone.fpn.inner_blocks.0.0.weight"] == 1.0
    assert rates[f"{body}layer4.0.conv1.weight"] == pytest.approx(0.5 * 0.1)
    assert rates[f"{body}layer1.0.conv1.weight"] == pytest.approx(0.5 * 0.1**4)
    assert rates[f"{body}conv1.0.weight"] == pytest.approx(0.5 * 0.1**5)
    alone = parameter_groups(model, options(backbone_lr=0.5), 1.0)
    rates = {name: group["lr"] for name, group in names_of(model, alone)}
    assert {rate for name, rate in rates.items() if name.startswith(body)} == {0.5}


def test_without_a_body_or_stages_it_is_refused(model: Detector) -> None:
    other = copy.deepcopy(model)
    other.backbone.body.stages = None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="layer_decay: the stages of this backbone share"):
        parameter_groups(other, options(layer_decay=0.5), 1.0)
    other.backbone = nn.Identity()
    with pytest.raises(ValueError, match="backbone_lr, layer_decay: FasterRCNN has no backbone"):
        parameter_groups(other, options(backbone_lr=0.5), 1.0)


def learn(model: Detector, steps: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    steps.step()


@pytest.mark.parametrize("name", NAMES)
def test_each_is_torchs_and_resumes_bit_exactly(model: Detector, name: Optimizer) -> None:
    chosen, lr = options(optimizer=name, momentum=0.8, weight_decay=0.01), 1e-3
    ours = copy.deepcopy(model)
    unbroken = optimizer(ours, chosen, lr)
    learn(ours, unbroken, 0)
    kept = copy.deepcopy((ours.state_dict(), unbroken.state_dict()))
    learn(ours, unbroken, 1)

    again = copy.deepcopy(model)
    again.load_state_dict(kept[0])
    resumed = optimizer(again, chosen, lr)
    resumed.load_state_dict(kept[1])
    learn(again, resumed, 1)
    for (key, a), b in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    if name != "muon":
        assert type(unbroken).__name__.lower() == name
    momentum = unbroken.param_groups[0].get("momentum")
    assert momentum == (0.8 if name in ("sgd", "rmsprop") else 0.95 if name == "muon" else None)


def test_muon_is_torchs_on_matrices_and_adamw_on_the_rest(model: Detector) -> None:
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    steps = optimizer(ours, options(optimizer="muon", weight_decay=0.01), 0.003)
    scheduler = torch.optim.lr_scheduler.LambdaLR(steps, lambda step: 1 / (step + 1))
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    kernels = [p for p in theirs.parameters() if p.ndim > 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    assert matrices
    expected: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.003, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": kernels}, {"params": vectors, "weight_decay": 0.0}],
            lr=0.003,
            weight_decay=0.01,
        ),
    ]
    for step in range(2):
        learn(ours, steps, step)
        scheduler.step()
        learn(theirs, expected[0], step)
        expected[1].step()
        for group in (group for one in expected for group in one.param_groups):
            group["lr"] = 0.003 / (step + 2)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-7, msg=key)


def test_muon_needs_a_matrix() -> None:
    convolutions = retinanet("resnet10t", 3, min_size=64, max_size=64, fpn_channels=8)
    with pytest.raises(ValueError, match="optimizer muon: expected a model with matrices"):
        optimizer(convolutions, options(optimizer="muon"), 0.1)
