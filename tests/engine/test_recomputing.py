# SPDX-License-Identifier: BSD-3-Clause
"""What backward computes again has the gradients of what is saved."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fastdet import memory
from fastdet.engine import recomputing
from fastdet.engine.fused import run_fused, unfused
from fastdet.models.batch_norms import AnySizeBatchNorm2d, FixedBatchNorm2d

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(24),
    "any size": lambda: AnySizeBatchNorm2d(24),
    "fixed": lambda: FixedBatchNorm2d(24).train(),
    "no statistics": lambda: nn.BatchNorm2d(24, track_running_stats=False),
    "not affine": lambda: nn.BatchNorm2d(24, affine=False),
    "frozen": lambda: FrozenBatchNorm2d(24),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "in place": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
}


def network(norm: str = "batch", activation: str = "in place") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 1),
        NORMS[norm](),
        ACTIVATIONS[activation](),
        nn.Conv2d(24, 24, 3, padding=1),
        NORMS[norm](),
        ACTIVATIONS[activation](),
        nn.Conv2d(24, 8, 1),
    ).to(memory_format=torch.channels_last)


def maps(side: int = 9) -> Tensor:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    loss = run_fused(model, x).square().sum()
    return list(torch.autograd.grad(loss, [x, *model.parameters()]))


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was computed again, in order."""
    made: list[Tensor] = []
    original = recomputing._Recipe.again

    def counted(recipe: Any) -> Tensor:
        made.append(original(recipe))
        return made[-1]

    monkeypatch.setattr(recomputing._Recipe, "again", counted)
    return made


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_and_statistics_are_those_of_the_module(
    norm: str, activation: str, again: list[Tensor]
) -> None:
    model, own = network(norm, activation), network(norm, activation)
    found = gradients(model, maps())
    assert bool(again) == (norm != "not affine")
    with unfused():
        expected = gradients(own, maps())
    assert_close(found, expected)
    assert_close(model.state_dict(), own.state_dict())


@pytest.mark.parametrize("activation", ["relu", "in place"])
def test_the_output_of_a_norm_is_freed(activation: str) -> None:
    model, kept = network(activation=activation), []
    for part in (model[1], model[2], model[4], model[5]):
        part.register_forward_hook(lambda _, __, output: kept.append(weakref.ref(output)))
    result = run_fused(model, maps())
    assert [output() for output in kept] == [None] * 4
    result.sum().backward()


def test_the_readers_of_a_tensor_share_it(again: list[Tensor]) -> None:
    gradients(network(), maps())
    assert len(again) == 4  # the convolution and the ReLU, twice
    assert len({x.data_ptr() for x in again}) == 2


def test_backward_twice_and_of_a_gradient() -> None:
    model, x = network(activation="silu"), maps(5)
    loss = run_fused(model, x).square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)

    def of_gradient() -> Tensor:
        (grad,) = torch.autograd.grad(run_fused(model, x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    found = of_gradient()
    with unfused():
        expected = of_gradient()
    torch.testing.assert_close(found / expected.norm(), expected / expected.norm())


def test_a_change_in_place_is_an_error() -> None:
    model, x = network(), maps()
    loss = run_fused(model, x).sum()
    with torch.no_grad():
        model[4].bias += 1  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_map_that_is_written_later_is_saved(again: list[Tensor]) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 4, 1).to(memory_format=torch.channels_last)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            y += 1
            return self.conv(y)

    torch.manual_seed(0)
    model = Written()
    found = gradients(model, maps())
    assert not again
    with unfused():
        expected = gradients(model, maps())
    assert_close(found, expected)


def test_hooks_of_others_stay(again: list[Tensor]) -> None:
    packed: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        found = gradients(network(), maps())
    assert packed
    assert not again
    assert_close(found, gradients(network(), maps()))


def test_large_maps_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(network(), maps())
    monkeypatch.setattr(memory, "FROM_SYSTEM", 0)
    assert_close(gradients(network(), maps()), expected)
