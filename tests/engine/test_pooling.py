# SPDX-License-Identifier: BSD-3-Clause
"""Max pooling by our kernel, in inference and in training: where it runs, with the same results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.engine.fused import run_fused, unfused
from fastdet.engine.pooling import max_pool

from .recorded_calls import recorded_calls


def noise(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last)


class Stem(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x).relu())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our operators that run."""
    return recorded_calls(monkeypatch, "max_pool2d", "max_pool2d_with_argmax")


POOLS: dict[str, Callable[[Tensor], Any]] = {
    "layer": nn.MaxPool2d(3, 2, 1),
    "layer of pairs": nn.MaxPool2d((3, 2), (2, 1), (1, 0)),
    "function": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "stride of the kernel": lambda x: F.max_pool2d(x, (2, 2)),
    "ceil without a rest": nn.MaxPool2d(2, 1, ceil_mode=True),
}
OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "dilated": nn.MaxPool2d(3, 2, 1, dilation=2),
    "ceil": nn.MaxPool2d(2, 3, ceil_mode=True),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "large": nn.MaxPool2d(17, 1, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*POOLS, *OTHERS])
def test_inference(name: str, dtype: torch.dtype, calls: list[str]) -> None:
    network = Stem((POOLS | OTHERS)[name]).to(dtype).eval()
    x = noise(2, 3, 18, 17).to(dtype)
    with torch.no_grad():
        run_fused(network, x)  # builds the form
        calls.clear()
        found = run_fused(network, x)
        assert set(calls) == ({"max_pool2d"} if name in POOLS else set())
        with unfused():
            torch.testing.assert_close(found, run_fused(network, x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", [*POOLS, *OTHERS])
@pytest.mark.parametrize("autocast", [False, True])
def test_training(name: str, autocast: bool, calls: list[str]) -> None:
    network, x = Stem((POOLS | OTHERS)[name]), noise(2, 3, 18, 17)

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = run_fused(network, x)
            return torch.autograd.grad((y.float() ** 2).sum(), list(network.parameters()))

    found = gradients()
    assert set(calls) == ({"max_pool2d_with_argmax"} if name in POOLS else set())
    with unfused():
        for a, b in zip(found, gradients(), strict=True):
            torch.testing.assert_close(a, b, rtol=0.02 if autocast else 1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "x", [noise(2, 3, 8, 8).contiguous(), noise(2, 3, 8, 8).double(), noise(2, 3, 8, 8)[0]]
)
def test_other_maps_are_torchs(x: Tensor, calls: list[str]) -> None:
    assert torch.equal(max_pool(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1))
    assert not calls


def test_errors_are_torchs() -> None:
    for arguments in ((3, 2, 2), (9,)):
        with pytest.raises(RuntimeError) as expected:
            F.max_pool2d(noise(1, 2, 5, 5), *arguments)
        with pytest.raises(RuntimeError) as found:
            max_pool(noise(1, 2, 5, 5), *arguments)
        assert str(found.value) == str(expected.value)
