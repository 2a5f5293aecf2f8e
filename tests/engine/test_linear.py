# SPDX-License-Identifier: BSD-3-Clause
"""Linear layers by oneDNN: which ones, and that results and gradients are the same."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.engine import fused, linear
from fastdet.engine.fused import fast_linear, unfused
from fastdet.models import rt_detr
from tests.models.scenes import scene

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
ROWS, INPUTS, OUTPUTS = 300, 80, 48  # just enough products


@pytest.fixture(autouse=True)
def slow_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which torch's products are slow."""
    monkeypatch.setattr(fused, "products_are_slow", lambda: True)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weights that oneDNN multiplies."""
    shapes: list[tuple[int, ...]] = []
    run = linear.product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append(tuple(weight.shape))
        return run(x, weight, bias)

    monkeypatch.setattr(linear, "product", product)
    return shapes


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(INPUTS, OUTPUTS, bias=bias)


def results(module: nn.Linear, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and the parameters."""
    x = x.clone().requires_grad_()
    with fast_linear(x.detach()):
        y = module(x)
    grads = torch.autograd.grad((y * y.detach().cos()).sum(), [x, *module.parameters()])
    return [y.detach(), *grads]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(ROWS, INPUTS), (2, 3, ROWS // 6, INPUTS)])
def test_results_and_gradients(
    bias: bool, shape: tuple[int, ...], runs: list[tuple[int, ...]]
) -> None:
    module, x = layer(bias), noise(*shape)
    found = results(module, x)
    rows = x.numel() // INPUTS
    assert runs == [(OUTPUTS, INPUTS), (INPUTS, rows), (INPUTS, OUTPUTS)]
    with unfused():
        assert_close(found, results(module, x))
    assert len(runs) == 3


def test_the_gradient_of_a_weight_takes_parts_of_the_rows(
    runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ROWS", 128)
    module, x = layer(), noise(ROWS, INPUTS)
    found = results(module, x)
    assert runs[1:-1] == [(INPUTS, 128), (INPUTS, 128), (INPUTS, 44)]
    with unfused():
        assert_close(found, results(module, x))


def test_any_strides(runs: list[tuple[int, ...]]) -> None:
    module, x = layer(), noise(2, INPUTS, ROWS).transpose(1, 2)
    x.requires_grad_()
    with fast_linear(x.detach()):
        y = module(x)
    y.sum().backward()  # a gradient that is one number, expanded
    assert len(runs) == 3
    assert x.grad is not None
    torch.testing.assert_close(y, F.linear(x, module.weight, module.bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, module.weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)


def test_second_derivatives() -> None:
    module, x = layer(), noise(ROWS, INPUTS).requires_grad_()

    def penalty() -> Tensor:
        (grad,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
        return grad.pow(2).sum()

    with fast_linear(x.detach()):
        found = torch.autograd.grad(penalty(), module.weight)
    expected = torch.autograd.grad(penalty(), module.weight)
    assert_close(list(found), list(expected))


def test_only_gradients_that_are_wanted(runs: list[tuple[int, ...]]) -> None:
    module, x = layer().requires_grad_(False), noise(ROWS, INPUTS).requires_grad_()
    with fast_linear(x.detach()):
        module(x).sum().backward()
    assert runs == [(OUTPUTS, INPUTS), (INPUTS, OUTPUTS)]
    assert module.weight.grad is None


def test_what_stays_with_torch(
    runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = layer(), noise(ROWS, INPUTS)
    with fast_linear(x):
        module(x[: ROWS // 2])  # too few products
        module.double()(x.double())
        module.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
        torch.func.vmap(module)(x[None])
    monkeypatch.setattr(fused, "products_are_slow", lambda: False)
    with fast_linear(x):
        module(x)
    assert not runs


def test_a_detector_learns_with_it(runs: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    model = rt_detr("resnet10t", 4, fixed_size=(128, 128), fpn_channels=64, decoder_layers=1)
    images, targets = scene()
    model.train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(1)  # the noise of the denoising queries
        torch.stack(list(model(images, targets).values())).sum().backward()
        return [p.grad.clone() for p in model.head.parameters() if p.grad is not None]

    found = gradients()
    assert runs
    with unfused():
        expected = gradients()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-6)


def test_the_input_is_freed_before_its_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = layer(), noise(ROWS, INPUTS).requires_grad_()
    inner = x * 1.0
    with fast_linear(inner.detach()):
        y = module(inner)
    storage: Any = inner.untyped_storage()._weak_ref()  # type: ignore[attr-defined]
    del inner
    freed: list[bool] = []
    run = linear.product

    def product(*arguments: Tensor) -> Tensor:
        freed.append(torch.UntypedStorage._expired(storage))  # type: ignore[attr-defined]
        return run(*arguments)

    monkeypatch.setattr(linear, "product", product)
    y.sum().backward()
    assert freed == [False, True]
