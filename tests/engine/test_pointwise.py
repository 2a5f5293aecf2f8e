# SPDX-License-Identifier: BSD-3-Clause
"""1x1 convolutions of trainings on one thread by oneDNN: which ones, and the same results."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastdet.engine import fused, pointwise
from fastdet.engine.fused import run_fused, unfused
from fastdet.engine.pointwise import PointwiseMode

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
INPUTS, OUTPUTS = 48, 40


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a processor on which torch's products are slow."""
    monkeypatch.setattr(fused, "products_are_slow", lambda: True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the maps of convolutions that oneDNN computes."""
    shapes: list[tuple[int, ...]] = []
    fits = pointwise._fits

    def recording(*args: Tensor) -> bool:
        if fits(*args):
            shapes.append(tuple(args[0].shape))
            return True
        return False

    monkeypatch.setattr(pointwise, "_fits", recording)
    return shapes


def noise(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    relu = nn.ReLU(inplace=True)  # changes the result of a convolution
    return nn.Sequential(nn.Conv2d(INPUTS, OUTPUTS, 1, bias=bias), relu, nn.Conv2d(OUTPUTS, 64, 1))


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of the parameters that want one."""
    x = x.clone().requires_grad_()
    y = run_fused(module, x)
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), leaves)]


def assert_equal_but_for_rounding(module: nn.Module, x: Tensor) -> None:
    found = results(module, x)
    with unfused():
        expected = results(module, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients(bias: bool, runs: list[tuple[int, ...]]) -> None:
    assert_equal_but_for_rounding(network(bias), noise(2, INPUTS, 20, 31))
    assert runs == [(2, INPUTS, 20, 31), (2, OUTPUTS, 20, 31)]


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_frozen_parameters(frozen: str, runs: list[tuple[int, ...]]) -> None:
    module = network()
    module.get_parameter(frozen).requires_grad_(False)
    assert_equal_but_for_rounding(module, noise(2, INPUTS, 20, 31))
    assert len(runs) == 2


def test_two_backwards_of_one_graph(runs: list[tuple[int, ...]]) -> None:
    x = noise(2, INPUTS, 20, 31).requires_grad_()
    y = run_fused(network(), x)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)
    assert len(runs) == 2


def test_second_derivatives(runs: list[tuple[int, ...]]) -> None:
    module, x = network(), noise(2, INPUTS, 20, 31).requires_grad_()

    def penalty() -> Tensor:
        (grad,) = torch.autograd.grad(run_fused(module, x).pow(3).sum(), x, create_graph=True)
        return grad.pow(2).sum()

    found = torch.autograd.grad(penalty(), list(module.parameters()))
    assert len(runs) == 2
    with unfused():
        expected = torch.autograd.grad(penalty(), list(module.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_what_stays_with_torch(
    runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(2, INPUTS, 20, 31).requires_grad_()
    with PointwiseMode():
        network()(x.detach()[:, :, :3, :3])  # too few products
        network()(x.detach().contiguous())
        for changes in ({"stride": 2}, {"padding": 1}, {"groups": 4}, {"kernel_size": 3}):
            nn.Conv2d(INPUTS, 64, **{"kernel_size": 1} | changes)(x)
        network().double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            network()(x)
        with torch.no_grad():
            network()(x)
    torch.set_num_threads(2)
    run_fused(network(), x)
    torch.set_num_threads(1)
    monkeypatch.setattr(fused, "products_are_slow", lambda: False)
    run_fused(network(), x)
    assert not runs
