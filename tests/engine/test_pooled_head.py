# SPDX-License-Identifier: BSD-3-Clause
"""Box heads in training: gradients of some RoIs at a time are those of the layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead as TorchvisionTwoMLPHead

from fastdet.engine import linear, pooled_head
from fastdet.engine.fused import run_pooled, unfused, watched_by
from fastdet.models import cascade_rcnn, faster_rcnn, mask_rcnn
from fastdet.models.roi_heads import TwoMLPHead
from fastdet.ops import multiscale_roi_align
from fastdet.ops.roi_align import add_multiscale_grad

CHANNELS, HIDDEN, ROIS = 8, 12, 11
SIDES = (32, 16, 8)
POOLING = ((2, 3), [0.25, 0.125, 0.0625], 2, 40, 3)
HEADS = [TwoMLPHead, TorchvisionTwoMLPHead]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(kind: Callable[..., nn.Module] = TwoMLPHead) -> Any:
    torch.manual_seed(0)
    return kind(CHANNELS * 6, HIDDEN)


def levels(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    maps = [noise(2, CHANNELS, n, n + 1, seed=n) for n in SIDES]
    last = torch.channels_last
    return [x.to(dtype).contiguous(memory_format=last).requires_grad_() for x in maps]


def boxes(rois: int = ROIS) -> Tensor:
    corner = 90 * noise(2, rois, 2, seed=7).sigmoid()
    return torch.cat([corner, corner + 150 * noise(2, rois, 2, seed=8).sigmoid()], 2)


COUNTS = torch.tensor([ROIS, 5])


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Four RoIs at a time: the numbers of them for which a gradient was added."""
    numbers: list[int] = []

    def counted(sums: Any, grad: Tensor, *arguments: Any) -> None:
        numbers.append(grad.shape[1])
        add_multiscale_grad(sums, grad, *arguments)

    monkeypatch.setattr(pooled_head, "ROWS", 4)
    monkeypatch.setattr(pooled_head, "add_multiscale_grad", counted)
    return numbers


def plain(module: nn.Module, maps: list[Tensor], rois: Tensor, counts: Tensor) -> Tensor:
    pooled = multiscale_roi_align(maps, rois, counts, *POOLING)
    return module(pooled.flatten(0, 1))


def gradients(hidden: Tensor, module: nn.Module, maps: list[Tensor]) -> list[Tensor | None]:
    inputs = [x for x in (*maps, *module.parameters()) if x.requires_grad]
    factor = noise(*hidden.shape, seed=9).to(hidden.dtype)
    return list(torch.autograd.grad((hidden * factor).sum(), inputs))


def assert_close(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        size = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-6 * size)


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_it_gives_what_the_layers_give(
    kind: Any, slow: bool, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "LEAST_PRODUCTS", 1)
    if not slow:
        monkeypatch.setattr(linear, "products_are_slow", lambda: False)
    module, maps = head(kind), levels()
    hidden = run_pooled(module, maps, boxes(), COUNTS, POOLING)
    assert hidden is not None
    found = gradients(hidden, module, maps)
    assert pieces == [4, 4, 3] * 2
    exact, wide = head(kind).double(), levels(torch.float64)
    expected = plain(exact, wide, boxes().double(), COUNTS)
    assert_close([hidden], [expected])
    assert_close(found, gradients(expected, exact, wide))
    assert all(x is not None and x.any() for x in found)


def test_two_backwards_give_the_same() -> None:
    module, maps = head(), levels()
    hidden: Any = run_pooled(module, maps, boxes(), COUNTS, POOLING)
    first = torch.autograd.grad(hidden.sum(), [*maps, module.fc6.weight], retain_graph=True)
    second = torch.autograd.grad(hidden.sum(), [*maps, module.fc6.weight])
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", ["weight", "layer", "first level", "levels"])
def test_what_needs_no_gradient_gets_none(frozen: str, pieces: list[int]) -> None:
    module, maps = head(), levels()
    if frozen == "weight":
        module.fc6.weight.requires_grad_(False)
    if frozen == "layer":
        module.fc6.requires_grad_(False)
    for x in {"first level": maps[:1], "levels": maps}.get(frozen, []):
        x.requires_grad_(False)
    hidden: Any = run_pooled(module, maps, boxes(), COUNTS, POOLING)
    found = gradients(hidden, module, maps)
    assert_close(found, gradients(plain(module, maps, boxes(), COUNTS), module, maps))
    assert bool(pieces) == (frozen != "levels")


@pytest.mark.parametrize(("rois", "counts"), [(0, (0, 0)), (ROIS, (0, 0)), (ROIS, (0, 3))])
def test_few_rois_or_none(rois: int, counts: tuple[int, int]) -> None:
    module, maps = head(), levels()
    few = torch.tensor(counts)
    hidden: Any = run_pooled(module, maps, boxes(rois), few, POOLING)
    expected = plain(module, maps, boxes(rois), few)
    assert_close([hidden], [expected])
    assert_close(gradients(hidden, module, maps), gradients(expected, module, maps))


def test_other_readers_of_the_levels_add_their_gradients() -> None:
    module, maps = head(), levels()
    results = []
    for run in (run_pooled, lambda m, x, b, c, _: plain(m, x, b, c)):
        hidden: Any = run(module, maps, boxes(), COUNTS, POOLING)
        total = hidden.square().sum() + sum((x**2).sum() for x in maps)
        results.append(torch.autograd.grad(total, maps))
    assert_close(*results)


def test_a_gradient_of_its_gradient_is_refused() -> None:
    module, maps = head(), levels()
    hidden: Any = run_pooled(module, maps, boxes(), COUNTS, POOLING)
    (grad,) = torch.autograd.grad(hidden.square().sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class OtherHead(TwoMLPHead):
    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(pooled) + 1


def hooked() -> Any:
    module = head()
    module.fc6.register_forward_hook(lambda *_: None)
    return module


def test_what_does_not_fit_is_left_to_the_layers() -> None:
    maps = levels()
    arguments = boxes(), COUNTS, POOLING
    assert run_pooled(head(), maps, *arguments) is not None
    normed = head()
    nn.utils.parametrizations.weight_norm(normed.fc6)
    without_bias = head()
    without_bias.fc6 = nn.Linear(CHANNELS * 6, HIDDEN, bias=False)
    for module in (head(OtherHead), hooked(), normed, without_bias, nn.Flatten()):
        assert run_pooled(module, maps, *arguments) is None
    assert run_pooled(head(), [x.contiguous() for x in maps], *arguments) is None
    assert run_pooled(head().double(), levels(torch.float64), *arguments) is None
    assert run_pooled(head(), [x.to("meta") for x in maps], *arguments) is None
    with torch.no_grad():
        assert run_pooled(head(), maps, *arguments) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert run_pooled(head(), maps, *arguments) is None
    with unfused():
        assert run_pooled(head(), maps, *arguments) is None
    with watched_by(lambda module, inputs: module(inputs)):
        assert run_pooled(head(), maps, *arguments) is None


# ---- in detectors --------------------------------------------------------------------------------


def losses_and_gradients(model: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    images = [noise(3, 128, 128, seed=i).sigmoid() for i in range(2)]
    targets = [
        {
            "boxes": torch.tensor([[9.0, 9, 99, 99], [30, 20, 60, 110]]),
            "labels": torch.tensor([1, 2]),
            "masks": torch.ones(2, 128, 128, dtype=torch.bool),
        }
    ] * 2
    if not model.learns_masks:
        targets = [{k: v for k, v in of_image.items() if k != "masks"} for of_image in targets]
    torch.manual_seed(1)  # the sampled proposals
    losses = model(images, targets)
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return losses, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("build", "heads"), [(faster_rcnn, 1), (cascade_rcnn, 3), (mask_rcnn, 1)])
def test_a_training_step_of_a_detector(build: Any, heads: int, pieces: list[int]) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"fpn_channels": 32, "min_size": 128, "max_size": 128}
    model = build("resnet18", 3, **options, rpn_post_nms_top_n_train=30, representation_size=16)
    losses, found = losses_and_gradients(model)
    assert len(pieces) >= 2 * heads
    seen = len(pieces)
    with unfused():
        expected, gradients = losses_and_gradients(model)
    assert len(pieces) == seen
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    assert len(found) == len(gradients)
    for a, b in zip(found, gradients, strict=True):
        assert float((a - b).norm()) <= 2e-2 * float(b.norm()) + 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        losses_and_gradients(model)
    assert len(pieces) == seen
