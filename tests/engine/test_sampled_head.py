# SPDX-License-Identifier: BSD-3-Clause
"""Heads of RPNs in training: gradients at few pixels are those of the layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from fastdet.engine import sampled_head
from fastdet.engine.fused import run_fused, unfused
from fastdet.models.rpn import RPNHead

CHANNELS, ANCHORS = 16, 3
SIDES = (20, 10, 1)
PIXELS = 8  # of an image, for which the head fits


def noise(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def head(kind: Callable[..., nn.Module] = RPNHead, **options: int) -> nn.Module:
    torch.manual_seed(0)
    made = kind(CHANNELS, ANCHORS, **options)
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.mul(20).to(memory_format=torch.channels_last)
            assert layer.bias is not None
            nn.init.normal_(layer.bias, std=0.1)
    return made


def maps() -> list[Tensor]:
    return [noise(2, CHANNELS, n, n + 1, seed=n).requires_grad_() for n in SIDES]


def weighted_sum(outputs: Any, pixels: list[list[tuple[int, int, int]]]) -> Tensor:
    """A loss that reads some pixels (image, y, x) of each level."""
    total = torch.zeros(())
    for seed, of_layer in enumerate(outputs):
        for x, of_level in zip(of_layer, pixels, strict=True):
            factor = noise(x.shape[1], seed=seed)
            total = total + 0 * x.float().sum()  # every map gets a gradient
            for image, row, column in of_level:
                total = total + (x[image, :, row, column].float() * factor).square().sum()
    return total


# Corners, edges, neighbours and the inside; a level without any; the only row of the last level.
FEW = [[(0, 0, 0), (1, 19, 20), (1, 19, 19), (0, 7, 8)], [], [(1, 0, 0)]]


def gradients(
    module: nn.Module, features: list[Tensor], pixels: Any = FEW, most_pixels: int | None = PIXELS
) -> list[Tensor | None]:
    for x in features:
        x.grad = None
    module.zero_grad()
    weighted_sum(run_fused(module, features, most_pixels), pixels).backward()
    return [x.grad for x in (*features, *module.parameters())]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pixels of each backward that took few pixels."""
    numbers: list[int] = []
    run = sampled_head._gradients

    def counted(weights: Any, patches: Tensor, grad: Tensor) -> Any:
        numbers.append(len(patches))
        return run(weights, patches, grad)

    monkeypatch.setattr(sampled_head, "_gradients", counted)
    return numbers


def assert_close(found: Any, expected: Any, relative: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            size = float(b.detach().abs().max())
            torch.testing.assert_close(a, b, rtol=relative, atol=relative * size)


@pytest.mark.parametrize("kind", [RPNHead, TorchvisionRPNHead])
def test_gradients_at_few_pixels_are_those_of_the_layers(
    kind: Callable[..., nn.Module], sampled: list[int]
) -> None:
    module, features = head(kind), maps()
    found = gradients(module, features)
    assert sampled == [5]
    with unfused():
        expected = gradients(module, features)
    assert sampled == [5]
    assert_close(found, expected)
    for of_layer, own in zip(run_fused(module, features, PIXELS), module(features), strict=True):
        assert_close(of_layer, own)


def test_a_gradient_at_many_pixels_is_that_of_the_layers(sampled: list[int]) -> None:
    module, features = head(), maps()
    many = [[(image, row, 3) for image in range(2) for row in range(n)] for n in (20, 10)]
    many.append([(image, 0, column) for image in range(2) for column in range(2)])
    many[0] += [(image, row, 7) for image in range(2) for row in range(20)]
    many[0] += [(image, row, 9) for image in range(2) for row in range(20)]
    found = gradients(module, features, many)
    assert sampled == []
    with unfused():
        assert_close(found, gradients(module, features, many))


def test_weights_and_maps_that_need_no_gradient_get_none(sampled: list[int]) -> None:
    module, features = head(), maps()
    module.conv.requires_grad_(False)
    features[0].requires_grad_(False)
    found = gradients(module, features)
    with unfused():
        assert_close(found, gradients(module, features))
    assert sampled == [5]
    assert found[0] is None


def test_no_gradient_at_all_is_zero(sampled: list[int]) -> None:
    module, features = head(), maps()
    total = sum(x.sum() for of_layer in run_fused(module, features, PIXELS) for x in of_layer)
    (0.0 * total).backward()
    assert sampled == [0]
    for tensor in (*features, *module.parameters()):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_under_autocast(sampled: list[int]) -> None:
    module, features = head(), maps()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(module, features)
        with unfused():
            expected = gradients(module, features)
    assert sampled == [5]
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert b is not None
        assert a.dtype == b.dtype
        assert float((a - b).norm() / b.norm().clamp(min=1e-9)) < 0.02


def test_backward_twice_and_of_a_gradient(sampled: list[int]) -> None:
    module, features = head(), maps()
    loss = weighted_sum(run_fused(module, features, PIXELS), FEW)
    first = torch.autograd.grad(loss, features, retain_graph=True)
    assert_close(torch.autograd.grad(loss, features), first)
    assert sampled == [5, 5]

    def of_gradient() -> Any:
        loss = weighted_sum(run_fused(module, features, PIXELS), FEW)
        (grad,) = torch.autograd.grad(loss, features[0], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [features[0], *module.parameters()])

    found = of_gradient()
    with unfused():
        assert_close(found, of_gradient())


@pytest.mark.parametrize("other", ["deep", "hooked", "strided", "many", "no gradient", "subclass"])
def test_what_does_not_fit_runs_as_it_is(other: str, sampled: list[int]) -> None:
    module = head(TorchvisionRPNHead, conv_depth=2) if other == "deep" else head()
    most_pixels = PIXELS
    if other == "hooked":
        module.conv.register_forward_hook(lambda *_: None)
    if other == "strided":
        module.cls_logits.stride = (2, 2)
    if other == "many":
        most_pixels = sum(n * (n + 1) for n in SIDES)
    if other == "subclass":
        module.__class__ = type("Own", (RPNHead,), {})
    outputs = None
    if other == "no gradient":
        with torch.no_grad():
            outputs = run_fused(module, maps(), most_pixels)
        assert not outputs[0][0].requires_grad
        return
    outputs = run_fused(module, maps(), most_pixels)
    weighted_sum([outputs[1]], FEW).backward()
    assert sampled == []


def test_the_maps_are_freed_in_backward() -> None:
    """Their gradients take their memory: all maps at once are not held."""
    module, features = head(), maps()
    inner = [x * 1.0 for x in features]
    storages = [x.untyped_storage()._weak_ref() for x in inner]  # type: ignore[attr-defined]
    loss = weighted_sum(run_fused(module, inner, PIXELS), FEW)
    del inner
    alive: list[bool] = []
    spread = sampled_head._spread

    def watched(*arguments: Any) -> Tensor:
        expired = torch.UntypedStorage._expired  # type: ignore[attr-defined]
        alive.extend(not expired(one) for one in storages)
        return spread(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled_head, "_spread", watched)
        loss.backward()
    assert alive
    assert not any(alive)
