# SPDX-License-Identifier: BSD-3-Clause
"""1x1 convolutions of upsampled maps: which are computed before the upsampling, with one result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.engine.fused import _forms, has_form, run_fused
from fastdet.engine.upsampling import UpsampledConv

COARSE, FINE, OUTPUTS = 5, 7, 24


def grown(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")


def first(net: Any, coarse: Tensor, fine: Tensor) -> Tensor:
    x = torch.cat([grown(coarse, fine), fine], dim=1)
    return net.a(x) + net.b(x)


def second(net: Any, coarse: Tensor, fine: Tensor) -> Tensor:
    return net.turned(torch.cat([fine, grown(coarse, fine)], dim=1))


def three_maps(net: Any, coarse: Tensor, fine: Tensor) -> Tensor:
    return net.a(torch.cat([grown(coarse, fine), fine[:, :3], fine[:, 3:]], dim=1))


def read_elsewhere(net: Any, coarse: Tensor, fine: Tensor) -> Tensor:
    x = torch.cat([grown(coarse, fine), fine], dim=1)
    return net.a(x) + x.mean()


def upsampled_read_elsewhere(net: Any, coarse: Tensor, fine: Tensor) -> Tensor:
    x = grown(coarse, fine)
    return net.a(torch.cat([x, fine], dim=1)) + x.mean()


def wide(net: Any, coarse: Tensor, fine: Tensor) -> Tensor:
    return net.wide(torch.cat([grown(coarse, fine), fine], dim=1))


def strided(net: Any, coarse: Tensor, fine: Tensor) -> Tensor:
    return net.strided(torch.cat([grown(coarse, fine), fine], dim=1))


# How many layers are computed before the upsampling.
NETWORKS: dict[Callable[[Any, Tensor, Tensor], Tensor], int] = {
    first: 2,
    second: 1,
    three_maps: 0,
    read_elsewhere: 0,
    upsampled_read_elsewhere: 0,
    wide: 0,
    strided: 0,
}


class Neck(nn.Module):
    def __init__(self, connect: Callable[[Any, Tensor, Tensor], Tensor], act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.connect = connect
        both = COARSE + FINE
        self.a = nn.Sequential(
            nn.Conv2d(both, OUTPUTS, 1, bias=False), nn.BatchNorm2d(OUTPUTS), act
        )
        self.b = nn.Sequential(nn.Conv2d(both, OUTPUTS, 1), act)
        self.turned = nn.Sequential(nn.Conv2d(both, OUTPUTS, 1), nn.BatchNorm2d(OUTPUTS), act)
        self.wide = nn.Conv2d(both, OUTPUTS, 3, padding=1)
        self.strided = nn.Conv2d(both, OUTPUTS, 1, stride=2)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
                nn.init.uniform_(module.bias)
                nn.init.uniform_(module.running_mean)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.connect(self, maps[0], maps[1])


def maps(images: int = 2) -> list[Tensor]:
    coarse, fine = torch.randn(images, COARSE, 5, 6), torch.randn(images, FINE, 10, 11)
    return [x.contiguous(memory_format=torch.channels_last) for x in (coarse, fine)]


def layers_of(neck: nn.Module) -> list[UpsampledConv]:
    (form,) = _forms[neck].values()
    assert form.graph is not None
    return [part for part in form.graph.modules() if isinstance(part, UpsampledConv)]


@torch.no_grad()
@pytest.mark.parametrize("connect", NETWORKS)
def test_which_are_computed_first(connect: Any) -> None:
    neck = Neck(connect, nn.SiLU()).eval()
    inputs = maps()
    found = run_fused(neck, inputs)
    torch.testing.assert_close(found, neck(inputs), rtol=1e-5, atol=1e-5)
    assert len(layers_of(neck)) == NETWORKS[connect]


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU, nn.SiLU, nn.Hardswish, nn.Sigmoid])
@pytest.mark.parametrize("is_channels_last", [True, False])
def test_activations_and_layouts(act: Any, images: int, is_channels_last: bool) -> None:
    neck = Neck(first, act()).eval()
    inputs = maps(images)
    if not is_channels_last:
        inputs = [x.contiguous() for x in inputs]
    before = [x.clone() for x in inputs]
    found = run_fused(neck, inputs)
    torch.testing.assert_close(found, neck(inputs), rtol=1e-5, atol=1e-5)
    assert len(layers_of(neck)) == (1 if act is nn.Identity else 2)  # a sum of two becomes one
    assert all(map(torch.equal, inputs, before))


@torch.no_grad()
def test_bfloat16_is_rounded_as_before() -> None:
    """There the sum of two parts would be rounded twice."""
    neck = Neck(first, nn.SiLU()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        run_fused(neck, maps())
    if has_form(neck):  # where bfloat16 is fast
        assert not layers_of(neck)
