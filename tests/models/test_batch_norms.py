# SPDX-License-Identifier: BSD-3-Clause
"""What each batch_norm mode trains, keeps and computes, on plain norms and on timm's."""

from typing import get_args

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d, GroupNormAct
from torch import nn

from fastdet.models import MODELS
from fastdet.models.backbones import timm_body
from fastdet.models.batch_norms import AnySizeBatchNorm2d, BatchNormMode, with_batch_norms
from fastdet.training.options import BatchNorm

MODES = get_args(BatchNormMode)


def network() -> nn.Sequential:
    """A plain norm and one of timm's, with weights and statistics that are no defaults."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(12), BatchNormAct2d(40)]
    for norm in norms:
        for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert x is not None
            nn.init.uniform_(x, 0.5, 1.5)
    convs = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 40, 3)
    return nn.Sequential(convs[0], norms[0], nn.Sequential(convs[1], norms[1]))


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "group"])
def test_in_eval_mode_all_are_the_batch_norm(mode: BatchNormMode) -> None:
    expected = network().eval()(IMAGES)
    torch.testing.assert_close(with_batch_norms(network(), mode).eval()(IMAGES), expected)


@pytest.mark.parametrize("mode", MODES)
def test_statistics_and_weights_in_training(mode: BatchNormMode) -> None:
    body = with_batch_norms(network(), mode).train()
    before = {name: x.clone() for name, x in body.state_dict().items()}
    found = body(IMAGES)
    found.square().sum().backward()
    torch.optim.SGD(body.parameters(), lr=0.1).step()
    moved = {name for name, x in body.state_dict().items() if not torch.equal(x, before[name])}
    statistics = {name for name in before if "running" in name}
    weights = {"1.weight", "1.bias", "2.1.weight", "2.1.bias"}
    assert moved & statistics == (statistics if mode in ("train", "sync") else set())
    assert moved & weights == (set() if mode == "frozen" else weights)
    fixed = mode in ("frozen", "eval")
    reference = network().train(not fixed)(IMAGES)
    assert torch.allclose(found, reference, atol=1e-5) == (mode != "group")


def test_group_norms_have_32_groups_or_a_divisor_of_both() -> None:
    body = with_batch_norms(network(), "group")
    plain, joined = body[1], body[2][1]
    assert isinstance(plain, nn.GroupNorm)
    assert isinstance(joined, GroupNormAct)
    assert (plain.num_groups, joined.num_groups) == (4, 8)
    reference = network()
    expected = nn.functional.group_norm(
        reference[0](IMAGES), 4, reference[1].weight, reference[1].bias, reference[1].eps
    )
    torch.testing.assert_close(body[:2](IMAGES), expected)
    assert bool((body(IMAGES) >= 0).all())  # timm's activation stays


def test_the_choice_of_the_command_line_is_what_there_is() -> None:
    assert get_args(BatchNorm) == MODES


@pytest.mark.parametrize("family", MODELS)
def test_every_family_passes_the_mode(family: str) -> None:
    model = MODELS[family]("resnet10t", 3, fpn_channels=8, batch_norm="group")
    kinds = {type(m) for m in model.get_submodule("backbone.body").modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


@pytest.mark.parametrize("family", ["faster_rcnn", "fcos", "mask_rcnn", "retinanet"])
def test_the_old_keyword_of_a_family(family: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{family}: .* use batch_norm=.frozen.") as warned:
        old = MODELS[family]("resnet10t", 3, fpn_channels=8, frozen_batch_norm=True)
    assert {w.filename for w in warned} == {__file__}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in old.modules())


def test_the_old_keyword_of_a_body() -> None:
    with pytest.warns(DeprecationWarning, match=r"timm_body: .* use batch_norm='frozen'"):
        body, _ = timm_body("resnet18", frozen_batch_norm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    before = {name: value.clone() for name, value in body.named_buffers()}
    body.train()(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in body.named_buffers())
    with pytest.warns(DeprecationWarning, match="use batch_norm='train'"):
        body, _ = timm_body("resnet10t", frozen_batch_norm=False)
    assert any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    with pytest.raises(TypeError, match="expected batch_norm or frozen_batch_norm, got both"):
        timm_body("resnet10t", batch_norm="eval", frozen_batch_norm=True)


def test_the_gradient_has_the_layout_of_the_map() -> None:
    norm, plain = AnySizeBatchNorm2d(8), nn.BatchNorm2d(8)
    x = torch.rand(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(2, 12, 5, 6, generator=torch.Generator().manual_seed(1))
    layouts, grads = [], []
    for module in (norm, plain):
        own = x.to(memory_format=torch.channels_last).requires_grad_()
        y = module(own)
        y.register_hook(
            lambda g: layouts.append(g.is_contiguous(memory_format=torch.channels_last))
        )
        (torch.cat([y, own[:, :4]], dim=1) * weight).sum().backward()
        grads.append([own.grad, module.weight.grad, module.bias.grad])
    assert layouts == [True, False]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
