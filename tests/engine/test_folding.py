# SPDX-License-Identifier: BSD-3-Clause
"""Frozen norms folded for training: which ones, the same results, and never a form out of date."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from fastdet.engine import folding
from fastdet.engine.folding import FoldedConv, folded_graph
from fastdet.engine.fused import run_fused, unfused
from fastdet.models.backbones import timm_body

IMAGES = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def with_numbers(module: Any) -> Any:
    """The module with norms whose statistics and weights are no defaults."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, folding.FROZEN):
            for name in ("weight", "bias", "running_mean", "running_var"):
                x = getattr(part, name)
                x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
    return module.to(memory_format=torch.channels_last)


def network(norm: Callable[[int], nn.Module] = FrozenBatchNorm2d, bias: bool = False) -> Any:
    torch.manual_seed(0)
    return with_numbers(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=bias),
            norm(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=bias),
            norm(8),
        )
    ).train()


def folded(module: nn.Module) -> int:
    graph = folded_graph(module, IMAGES)
    if graph is None:
        return 0
    return sum(isinstance(part, FoldedConv) for part in graph.children())


def results(module: nn.Module, images: Tensor = IMAGES) -> list[Tensor]:
    """The outputs, and the gradients of the input and the parameters."""
    x = images.to(memory_format=torch.channels_last).clone().requires_grad_()
    found = run_fused(module, x)
    outputs = list(found) if isinstance(found, list | tuple) else [found]
    total = torch.stack([(y * y.detach().cos()).sum() for y in outputs]).sum()
    parameters = [p for p in module.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, [x, *parameters])
    return [*(y.detach() for y in outputs), *grads]


def assert_same(module: nn.Module, rtol: float = 1e-4) -> None:
    found = results(module)
    with unfused():
        expected = results(module)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
def test_results_and_gradients(norm: Callable[[int], nn.Module], bias: bool) -> None:
    module = network(norm, bias)
    assert folded(module) == 2
    assert_same(module)


@pytest.mark.parametrize(
    ("name", "pairs"), [("resnet18", 20), ("resnet50", 53), ("regnety_002", 44)]
)
def test_bodies(name: str, pairs: int) -> None:
    torch.manual_seed(0)
    body = with_numbers(timm_body(name, batch_norm="frozen")[0]).train()
    for part in body.modules():  # so that activations neither grow nor vanish
        if isinstance(part, folding.FROZEN):
            part.running_var.fill_(4.0)
    assert folded(body) == pairs
    assert_same(body, rtol=1e-3)


def test_what_is_not_folded() -> None:
    class Twice(nn.Module):
        """A norm that is not the only reader of its convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    class Own(nn.Sequential):
        """Python code of another package, which may do anything."""

    Own.__module__ = "somebody.elses"
    Twice.__module__ = "torchvision.twice"
    assert folded(Twice()) == 0
    assert folded(Own(*network())) == 0
    assert folded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))) == 0
    module = network()
    module.grad_checkpointing = True
    assert folded(module) == 0


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
def test_under_autocast(norm: Callable[[int], nn.Module]) -> None:
    """Maps are in bfloat16, gradients in float32; as near to float32 as the module's own."""
    module = network(norm)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(module)
        with unfused():
            own = results(module)
    with unfused():
        expected = results(module)
    assert [x.dtype for x in found] == [torch.bfloat16] + [torch.float32] * (len(found) - 1)
    for a, b, exact in zip(found, own, expected, strict=True):
        assert (a - exact).norm() < 2 * (b - exact).norm() + 0.01 * exact.norm()


def test_hooks_run_the_module() -> None:
    module, x = network(), IMAGES.to(memory_format=torch.channels_last)
    seen: list[int] = []
    handle = module[1].register_forward_hook(lambda *_: seen.append(1))
    run_fused(module, x)
    handle.remove()
    run_fused(module, x)
    assert len(seen) == 1


def test_a_change_of_the_module_is_noticed() -> None:
    module = network()
    assert_same(module)
    with torch.no_grad():
        module[1].running_mean += 1.0
        module[0].weight *= 2.0
    assert_same(module)
    module[1] = with_numbers(FrozenBatchNorm2d(8)).train()
    module[1].bias.fill_(7.0)
    assert_same(module)
    module[4] = nn.BatchNorm2d(8)
    assert_same(module)
    module.eval()
    assert_same(module)  # with gradients, the running statistics


def test_paths_are_dropped_anew_in_each_call() -> None:
    body = nn.Sequential(*network(), StochasticDepth(0.5, "row")).train()
    assert folded(body) == 2
    torch.manual_seed(0)
    kept = {tuple(run_fused(body, IMAGES).flatten(1).any(dim=1).tolist()) for _ in range(20)}
    assert len(kept) > 1
