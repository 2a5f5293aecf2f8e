# SPDX-License-Identifier: BSD-3-Clause
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)
from tests import reference

NAN = float("nan")
LOSSES: dict[str, Callable[..., Tensor]] = {
    "generalized": generalized_box_iou_loss,
    "distance": distance_box_iou_loss,
    "complete": complete_box_iou_loss,
}
kinds = pytest.mark.parametrize("kind", LOSSES)


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(*shape, 4), never of size zero, almost never with equal coordinates."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 60
    size = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 60 + 1
    return torch.cat([corner, corner + size], -1).to(dtype)


def samples(device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (boxes1, boxes2)."""

    def pairs(*rows: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
        both = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 4).to(device)
        return both[:, 0], both[:, 1]

    unit, shifted, far = [0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 70]
    table = {
        "hand-worked": pairs((unit, unit), (unit, shifted), (unit, far)),
        "empty": pairs(),
        "one": pairs((shifted, far)),
        "one box without rows": (
            torch.tensor(unit, dtype=torch.float32, device=device),
            torch.tensor(shifted, dtype=torch.float32, device=device),
        ),
        "touching": pairs((unit, [10, 0, 20, 10]), (unit, [10, 10, 20, 20])),
        "zero area": pairs(
            ([5, 5, 5, 5], [5, 5, 5, 5]),
            ([5, 5, 5, 5], [7, 5, 7, 5]),
            ([5, 5, 5, 9], [5, 5, 5, 9]),
            ([5, 5, 5, 5], unit),
            (unit, [3, 5, 9, 5]),
        ),
        "inverted": pairs(([9, 0, 3, 10], unit), ([10, 10, 0, 0], unit), (unit, [9, 0, 3, 10])),
        "non-contiguous": (
            random_boxes(20, 2).to(device)[:, 1],
            random_boxes(20, seed=1).to(device).t().contiguous().t(),
        ),
        "between vectors": (
            random_boxes(10).to(device).flatten()[1:-3].view(9, 4),
            random_boxes(10, seed=1).to(device).flatten()[3:-1].view(9, 4),
        ),
        "expanded": (random_boxes(1).to(device).expand(9, 4), random_boxes(9).to(device) + 3),
        "three dimensions": (
            random_boxes(3, 5).to(device),
            random_boxes(3, 5, seed=1).to(device),
        ),
    }
    for n in (15, 16, 17, 63, 64, 65, 1023, 1025):
        table[f"random {n}"] = random_boxes(n).to(device), random_boxes(n, seed=n).to(device)
    return table


SAMPLES = list(samples("cpu"))


@kinds
@pytest.mark.parametrize("name", SAMPLES)
def test_equals_reference(kind, name, device):
    boxes1, boxes2 = samples(device)[name]
    got = LOSSES[kind](boxes1, boxes2)
    expected = reference.box_iou_loss(boxes1.cpu(), boxes2.cpu(), kind)
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=2e-6)


def test_hand_worked(device):
    boxes1, boxes2 = samples(device)["hand-worked"]
    expected = {
        "generalized": [0, 2 / 3, 1 + (4200 - 300) / 4200],
        "distance": [0, 2 / 3 + 25 / 325, 1 + (50**2 + 55**2) / (60**2 + 70**2)],
    }
    for kind, row in expected.items():
        got = LOSSES[kind](boxes1, boxes2)
        torch.testing.assert_close(got.cpu(), torch.tensor(row), rtol=1e-6, atol=1e-6)


@kinds
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", SAMPLES)
def test_gradient_equals_reference(kind, reduction, name, device):
    pair = [boxes.double().requires_grad_() for boxes in samples(device)[name]]
    out = LOSSES[kind](*pair, reduction=reduction)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad(out, pair, grad.to(device))
    cpu = [boxes.detach().cpu().requires_grad_() for boxes in pair]
    expected_out = reference.box_iou_loss(cpu[0], cpu[1], kind)
    if reduction != "none":
        count = max(expected_out.numel(), 1) if reduction == "mean" else 1
        expected_out = expected_out.sum() / count
    torch.testing.assert_close(out.detach().cpu(), expected_out.detach(), rtol=1e-9, atol=1e-9)
    for a, b in zip(got, torch.autograd.grad(expected_out, cpu, grad), strict=True):
        assert a.isfinite().all()
        # There the gradient convention differs from autograd's; see csrc/geometry/box_iou.h.
        if name not in ("touching", "zero area", "inverted"):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-12)


# Not "complete": the weight of its aspect term is a constant, so its gradient is not exact.
@pytest.mark.parametrize("kind", ["generalized", "distance"])
def test_gradcheck(kind, device):
    pair = [random_boxes(6, seed=n, dtype=torch.float64) for n in (3, 4)]
    leaves = [boxes.to(device).requires_grad_() for boxes in pair]
    assert torch.autograd.gradcheck(LOSSES[kind], leaves, nondet_tol=0.0)


@kinds
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("eps", [1e-7, 0.5])
def test_equals_torchvision(kind, reduction, eps, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    theirs = getattr(torchvision.ops, LOSSES[kind].__name__)
    pair = [random_boxes(200, seed=n, dtype=torch.float64) for n in (0, 1)]
    # Rows where the gradient is a convention of torchvision: equal, touching and nested boxes.
    pair[0][:4] = torch.tensor([[0, 0, 9, 9]] * 4)
    pair[1][:4] = torch.tensor([[0, 0, 9, 9], [9, 0, 12, 9], [9, 9, 12, 12], [0, 3, 9, 6]])
    ours_in = [boxes.to(device).requires_grad_() for boxes in pair]
    theirs_in = [boxes.requires_grad_() for boxes in pair]
    ours = LOSSES[kind](*ours_in, reduction, eps)
    expected = theirs(*theirs_in, reduction, eps)
    torch.testing.assert_close(ours.cpu(), expected)
    grad = torch.rand_like(expected)
    got = torch.autograd.grad(ours, ours_in, grad.to(device))
    for a, b in zip(got, torch.autograd.grad(expected, theirs_in, grad), strict=True):
        torch.testing.assert_close(a.cpu(), b)


@kinds
def test_mean_of_no_rows_is_zero(kind, device):
    boxes = torch.zeros(0, 4, device=device, requires_grad=True)
    loss = LOSSES[kind](boxes, boxes.detach(), reduction="mean")
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, boxes)
    assert grad.shape == (0, 4)


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(kind, dtype, device):
    boxes1, boxes2 = random_boxes(33, dtype=dtype), random_boxes(33, seed=1, dtype=dtype)
    got = LOSSES[kind](boxes1.to(device), boxes2.to(device))
    assert got.equal(LOSSES[kind](boxes1.float().to(device), boxes2.float().to(device)))
    leaf = boxes1.to(device).requires_grad_()
    mixed = LOSSES[kind](leaf, boxes2.double().to(device), reduction="sum")
    assert mixed.dtype == torch.float64
    (grad,) = torch.autograd.grad(mixed, leaf)
    assert grad.dtype == dtype
    assert grad.isfinite().all()


@kinds
def test_a_coordinate_that_is_nan_shows_in_the_loss(kind, device):
    boxes1, boxes2 = random_boxes(20).to(device), random_boxes(20, seed=1).to(device)
    for coordinate in range(4):
        boxes1[coordinate, coordinate] = boxes2[4 + coordinate, coordinate] = NAN
    nan = LOSSES[kind](boxes1, boxes2).isnan().tolist()
    assert nan == [True] * 8 + [False] * 12


@kinds
def test_no_second_derivative(kind, device):
    pair = [random_boxes(3, seed=n).to(device).requires_grad_() for n in (0, 1)]
    first = torch.autograd.grad(LOSSES[kind](*pair).sum(), pair, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first[0].sum().backward()


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_laws(seed, n):
    boxes1, boxes2 = random_boxes(n, seed=seed), random_boxes(n, seed=seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for loss in LOSSES.values():
        got = loss(boxes1, boxes2)
        assert got.min() >= 0
        torch.testing.assert_close(got, loss(boxes2, boxes1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got, loss(boxes1 * 4, boxes2 * 4), rtol=1e-5, atol=1e-5)
        assert got[order].equal(loss(boxes1[order], boxes2[order]))
        assert loss(boxes1, boxes1).abs().max() < 1e-5


@kinds
def test_result_does_not_depend_on_the_thread_count(kind):
    pair = [random_boxes(20_000, seed=n).requires_grad_() for n in (0, 1)]
    results = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            out = LOSSES[kind](*pair)
            results.append((out, *torch.autograd.grad(out.sum(), pair)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.cuda
@kinds
@pytest.mark.parametrize("name", SAMPLES)
def test_cuda_equals_cpu(kind, name):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    results = []
    for device in ("cpu", "cuda"):
        pair = [boxes.detach().requires_grad_() for boxes in samples(device)[name]]
        out = LOSSES[kind](*pair)
        results.append([t.detach().cpu() for t in (out, *torch.autograd.grad(out.sum(), pair))])
    for a, b in zip(*results, strict=True):
        assert a.equal(b)


@kinds
def test_opcheck(kind, device):
    pair = [random_boxes(7, seed=n).to(device) for n in (0, 1)]
    leaves = [boxes.clone().requires_grad_() for boxes in pair]
    torch.library.opcheck(torch.ops.fastdet.box_iou_loss, (*leaves, 1e-7, kind))
    grad = torch.rand(7, device=device)
    torch.library.opcheck(torch.ops.fastdet.box_iou_loss_backward, (grad, *pair, 1e-7, kind))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def loss(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return complete_box_iou_loss(boxes1 * 2, boxes2, reduction="mean")

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, dynamic=True)):
        pair = [random_boxes(6, seed=n).to(device).requires_grad_() for n in (0, 1)]
        out = run(*pair)
        results.append((out, *torch.autograd.grad(out, pair)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input_is_named(device):
    boxes = random_boxes(5).to(device)
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', got 'max'"):
        generalized_box_iou_loss(boxes, boxes, reduction="max")
    for loss in (generalized_box_iou_loss, distance_box_iou_loss, complete_box_iou_loss):
        for eps in (-1e-7, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"eps: expected a finite number >= 0, got {eps}"):
                loss(boxes, boxes, eps=eps)
    with pytest.raises(
        RuntimeError,
        match=r"box_iou_loss: boxes1: expected floating \(..., 4\), got Float \(5, 3\)",
    ):
        distance_box_iou_loss(boxes[:, :3], boxes)
    with pytest.raises(RuntimeError, match=r"boxes2: .* the shape of boxes1, got Float \(4, 4\)"):
        complete_box_iou_loss(boxes, boxes[:4])
    with pytest.raises(RuntimeError, match=r"boxes2: expected floating.*, got Long \(5, 4\)"):
        complete_box_iou_loss(boxes, boxes.long())
    with pytest.raises(RuntimeError, match=r"kind: expected iou, .* got 'rotated'"):
        torch.ops.fastdet.box_iou_loss(boxes, boxes, 1e-7, "rotated")
    with pytest.raises(RuntimeError, match=r"grad: expected one number for each row"):
        torch.ops.fastdet.box_iou_loss_backward(boxes, boxes, boxes, 1e-7, "distance")
