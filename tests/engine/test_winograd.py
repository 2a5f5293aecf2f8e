# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions in training: which ones use Winograd's algorithm, and that results are the same."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastdet import _native
from fastdet.engine.filters import Filters
from fastdet.engine.fused import run_fused, unfused
from fastdet.engine.winograd import WinogradConv, WinogradMode, _Conv

from .recorded_calls import recorded_calls

needs_fused_multiply_add = pytest.mark.skipif(
    _native.cpu_isa() == "baseline", reason="the algorithm saves nothing on this instruction set"
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def network() -> nn.Module:
    """Two convolutions that fit the algorithm and a strided one, with in-place activations."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 24, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(24, 24, 3, padding=1, stride=2),
    )
    return layers.to(memory_format=torch.channels_last)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the weights that use the algorithm."""
    shapes: list[tuple[int, ...]] = []
    run = _Conv.forward

    def forward(ctx, x: Tensor, weight: Tensor, *rest) -> Tensor:
        shapes.append(tuple(weight.shape))
        return run(ctx, x, weight, *rest)

    monkeypatch.setattr(_Conv, "forward", staticmethod(forward))
    return shapes


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and the parameters."""
    x = x.clone().requires_grad_()
    y = run_fused(module, x)
    grads = torch.autograd.grad((y * y.detach().cos()).sum(), [x, *module.parameters()])
    return [y.detach(), *grads]


@needs_fused_multiply_add
def test_training_gives_the_modules_results(runs: list[tuple[int, ...]]) -> None:
    module, x = network(), noise(2, 16, 13, 10)
    found = results(module, x)
    assert runs == [(32, 16, 3, 3), (24, 32, 3, 3)]
    with unfused():
        expected = results(module, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@needs_fused_multiply_add
def test_levels_share_the_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recorded_calls(monkeypatch, "winograd_filters", "winograd_filters_turned")
    conv = network()[0]  # pyright: ignore[reportIndexIssue]
    maps = [noise(1, 16, n, n).requires_grad_() for n in (8, 4, 2)]
    with WinogradMode():
        outputs = [conv(x) for x in maps]
    torch.stack([y.sum() for y in outputs]).sum().backward()
    assert made == ["winograd_filters", "winograd_filters_turned"]
    assert all(x.grad is not None for x in maps)


@needs_fused_multiply_add
def test_a_step_is_seen(runs: list[tuple[int, ...]]) -> None:
    module, x = network(), noise(1, 16, 8, 8)
    before = run_fused(module, x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    after = run_fused(module, x)
    with unfused():
        torch.testing.assert_close(after, run_fused(module, x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)
    assert len(runs) == 4


@needs_fused_multiply_add
def test_weights_that_live_for_one_call(runs: list[tuple[int, ...]]) -> None:
    """Parametrizations make new weights in each call, which may get the address of old ones."""
    weight, x = noise(32, 16, 3, 3), noise(1, 16, 6, 6)
    with WinogradMode():
        outputs = [nn.functional.conv2d(x, weight * i, None, 1, 1) for i in range(4)]
    assert len(runs) == 4
    for i, y in enumerate(outputs):
        torch.testing.assert_close(y, i * outputs[1], rtol=1e-4, atol=1e-4)


@needs_fused_multiply_add
def test_second_derivative(runs: list[tuple[int, ...]]) -> None:
    conv = network()[0]  # pyright: ignore[reportIndexIssue]

    def second(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run_fused(conv, x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), x)[0]

    x = noise(1, 16, 6, 5)
    found = second(x)
    assert runs
    with unfused():
        expected = second(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale)


@needs_fused_multiply_add
def test_inference_transforms_filters_once() -> None:
    module = network().eval()
    with torch.no_grad():
        found = run_fused(module, noise(2, 16, 140, 9))
        with unfused():
            expected = run_fused(module, noise(2, 16, 140, 9))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("summand", [None, (2, 32, 5, 6), (32, 1, 1)])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_conv_with_sum_and_activation(summand: tuple[int, ...] | None, activation: str) -> None:
    x, weight, bias = noise(2, 16, 5, 6), noise(32, 16, 3, 3), torch.arange(32.0)
    expected = nn.functional.conv2d(x, weight, bias, padding=1)
    other = None if summand is None else torch.randn(summand)
    if other is not None:
        expected = expected + other
    found = WinogradConv(Filters(weight), bias, activation)(x, other)
    expected = expected.relu() if activation == "relu" else expected
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


ACTIVATIONS = {
    "swish": nn.functional.silu,
    "hardswish": nn.functional.hardswish,
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv_with_activation(activation: str) -> None:
    x, weight = noise(2, 16, 5, 6), noise(32, 16, 3, 3)
    expected = ACTIVATIONS[activation](nn.functional.conv2d(x, weight, padding=1))
    found = WinogradConv(Filters(weight), None, activation)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


CONVS = {
    "few outputs": nn.Conv2d(16, 4, 3, padding=1),
    "few inputs": nn.Conv2d(3, 64, 3, padding=1),
    "1x1": nn.Conv2d(32, 32, 1),
    "stride": nn.Conv2d(32, 32, 3, padding=1, stride=2),
    "no padding": nn.Conv2d(32, 32, 3),
    "dilation": nn.Conv2d(32, 32, 3, padding=1, dilation=2),
    "groups": nn.Conv2d(32, 32, 3, padding=1, groups=2),
    "same": nn.Conv2d(32, 32, 3, padding="same"),
    "reflect": nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
    "float64": nn.Conv2d(32, 32, 3, padding=1).double(),
}


@pytest.mark.parametrize("name", CONVS)
def test_what_does_not_fit_runs_as_it_is(name: str, runs: list[tuple[int, ...]]) -> None:
    conv = CONVS[name].to(memory_format=torch.channels_last)
    x = noise(1, conv.in_channels, 9, 9).to(conv.weight.dtype)
    assert run_fused(conv, x).equal(conv(x))
    assert runs == []


def test_transforms_of_functions_run_as_they_are(runs: list[tuple[int, ...]]) -> None:
    conv, x = network()[0], noise(1, 16, 5, 5)  # pyright: ignore[reportIndexIssue]

    def loss(x: Tensor) -> Tensor:
        with WinogradMode():
            return conv(x).square().sum()

    grad = torch.func.grad(loss)(x)
    assert runs == []
    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


needs_winograd_in_bfloat16 = pytest.mark.skipif(
    _native.cpu_isa() == "baseline" or torch.cpu._is_amx_tile_supported(),
    reason="direct convolutions are faster on this processor",
)


def bfloat16_layers() -> nn.Module:
    """Two convolutions that fit the algorithm in bfloat16."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(64, 96, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(96, 64, 3, padding=1, bias=False),
    )
    return layers.to(memory_format=torch.channels_last)


@needs_winograd_in_bfloat16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_under_autocast(dtype: torch.dtype, runs: list[tuple[int, ...]]) -> None:
    """Gradients are nearer to those of float32 than the gradients of torch's autocast."""
    module, x = bfloat16_layers(), noise(2, 64, 21, 18).to(dtype)
    x = x.requires_grad_()
    wanted = [x, *module.parameters()]

    def gradients(autocast: bool) -> list[Tensor]:
        given = x if autocast else x.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = run_fused(module, given)
        assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
        return [grad.float() for grad in torch.autograd.grad(y.float().square().sum(), wanted)]

    found = gradients(True)
    assert runs == [(96, 64, 3, 3), (64, 96, 3, 3)]
    with unfused():
        theirs, exact = gradients(True), gradients(False)
    assert [grad.dtype for grad in theirs] == [grad.dtype for grad in found]
    for ours, torchs, expected in zip(found, theirs, exact, strict=True):
        assert (ours - expected).norm() <= 1.1 * (torchs - expected).norm()


@needs_winograd_in_bfloat16
def test_second_derivative_under_autocast(runs: list[tuple[int, ...]]) -> None:
    conv = bfloat16_layers()[0]  # pyright: ignore[reportIndexIssue]

    def second() -> Tensor:
        x = noise(1, 64, 6, 5).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = run_fused(conv, x)
        (grad,) = torch.autograd.grad(y.float().pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), x)[0]

    found = second()
    assert runs
    with unfused():
        expected = second()
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_few_channels_in_bfloat16_run_as_they_are(runs: list[tuple[int, ...]]) -> None:
    conv, x = network()[0], noise(1, 16, 9, 9)  # pyright: ignore[reportIndexIssue]
    with torch.autocast("cpu", torch.bfloat16):
        assert run_fused(conv, x).dtype == torch.bfloat16
    assert runs == []


def test_nchw_and_watchers_run_as_they_are(runs: list[tuple[int, ...]]) -> None:
    conv, x = network()[0], noise(1, 16, 9, 9)  # pyright: ignore[reportIndexIssue]
    run_fused(conv, x.contiguous())
    with FlopCounterMode(display=False) as counter:
        run_fused(conv, x)
    assert counter.get_total_flops() == 2 * 9 * 16 * 32 * 81
    with unfused():
        run_fused(conv, x)
    assert runs == []
