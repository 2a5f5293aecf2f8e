# SPDX-License-Identifier: BSD-3-Clause
"""Filters with the factors of norms: what is kept, and that they are those of the definition."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.engine.filters import FOLDED_AT_ONCE, SMALL, Filters
from fastdet.engine.fused import run_fused, unfused
from fastdet.engine.fusing import FusedConv, fused_graph
from fastdet.engine.winograd import WinogradConv

KERNELS = {"1x1": {"kernel_size": 1}, "3x3": {"kernel_size": 3, "padding": 1}}
LARGE, FEW = (160, 112), (32, 48)  # channels of filters of more and of fewer bytes than SMALL


def conv_and_norm(inputs: int, outputs: int, **geometry: int) -> nn.Sequential:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(inputs, outputs, **geometry), nn.BatchNorm2d(outputs)
    norm.running_mean, norm.running_var = torch.rand(outputs), torch.rand(outputs) + 0.5
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return nn.Sequential(conv, norm).eval().to(memory_format=torch.channels_last)


def layer_of(module: nn.Module, x: Tensor, dtype: torch.dtype) -> FusedConv | WinogradConv:
    graph = fused_graph(module, x, dtype)
    (layer,) = (part for part in graph.modules() if isinstance(part, (FusedConv, WinogradConv)))
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_in_pieces_is_folding_of_the_whole(dtype: torch.dtype) -> None:
    module = conv_and_norm(130, 67, kernel_size=3, stride=2)
    conv, norm = module
    assert conv.weight.numel() > FOLDED_AT_ONCE
    layer = layer_of(module, torch.rand(1, 130, 8, 8), dtype)
    scale = (norm.running_var.double() + norm.eps).rsqrt() * norm.weight.detach()
    exact = conv.weight.detach() * scale[:, None, None, None]
    folded = Filters(conv.weight.detach(), scale).folded(dtype)
    assert torch.equal(folded, exact.to(dtype))
    assert folded.is_contiguous(memory_format=torch.channels_last)
    if dtype == torch.bfloat16:
        assert torch.equal(layer.filters.whole(), folded)
    mean = norm.running_mean - conv.bias.detach()
    assert torch.equal(layer.bias, (norm.bias.detach() - mean * scale).to(dtype))


@pytest.mark.parametrize("name", KERNELS)
def test_float32_keeps_no_second_copy(name: str) -> None:
    module, x = conv_and_norm(*LARGE, **KERNELS[name]), torch.rand(1, LARGE[0], 9, 8)
    assert module[0].weight.nbytes > SMALL
    layer = layer_of(module, x, torch.float32)
    assert layer.filters.weight.data_ptr() == module[0].weight.data_ptr()
    assert layer.filters.scale is not None
    assert layer.filters.scale.shape == (LARGE[1],)
    assert layer.filters.centre is None


@torch.no_grad()
@pytest.mark.parametrize("name", KERNELS)
def test_small_filters_are_scaled_once(name: str) -> None:
    module, x = conv_and_norm(*FEW, **KERNELS[name]), torch.rand(1, FEW[0], 9, 8)
    assert module[0].weight.nbytes <= SMALL
    layer = layer_of(module, x, torch.float32)
    if isinstance(layer, WinogradConv):
        assert layer.filters is None  # they are only kept as laid out
    else:
        assert layer.filters.scale is None
        assert layer.filters.whole().data_ptr() == layer.filters.weight.data_ptr()
    torch.testing.assert_close(layer(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("second", ["same", "1x1", "1x3 after 3x1"])
@pytest.mark.parametrize("norms", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_filters(second: str, norms: tuple[bool, bool], dtype: torch.dtype) -> None:
    """A centre with factors or without, in a call and folded."""
    sides = {"same": ((3, 3), (3, 3)), "1x1": ((3, 5), (1, 1)), "1x3 after 3x1": ((3, 3), (1, 3))}
    weights = [torch.randn(7, 4, *side) for side in sides[second]]
    scales = [torch.rand(7) if has_norm else None for has_norm in norms]
    exact = [
        w.double() if s is None else w.double() * s.double()[:, None, None, None]
        for w, s in zip(weights, scales, strict=True)
    ]
    down, across = ((n - m) // 2 for n, m in zip(*(w.shape[2:] for w in weights), strict=True))
    expected = exact[0] + F.pad(exact[1], (across, across, down, down))
    filters = Filters(weights[0], scales[0], Filters(weights[1], scales[1]))
    found = (
        filters.ready(torch.float32).whole() if dtype == torch.float32 else filters.folded(dtype)
    )
    torch.testing.assert_close(found, expected.to(dtype))
    twice = filters.times(torch.full((7,), 2.0)).whole()
    torch.testing.assert_close(twice, 2 * expected.float())
    assert not any(found.data_ptr() == weight.data_ptr() for weight in weights)


@pytest.mark.parametrize("channels", [FEW, LARGE])
@pytest.mark.parametrize("name", KERNELS)
def test_copies_and_changed_weights(name: str, channels: tuple[int, int]) -> None:
    """A deep copy computes with its own weights; a changed weight or norm is seen."""
    module, x = conv_and_norm(*channels, **KERNELS[name]), torch.rand(1, channels[0], 9, 8)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        before = run_fused(module, x)
        other = copy.deepcopy(module)
        module[0].weight.mul_(2)
        module[1].bias.add_(1)
        after = run_fused(module, x)
        assert torch.equal(run_fused(other, x), before)
        with unfused():
            torch.testing.assert_close(after, module(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, atol=0.1)
