# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from tests import reference

INF, NAN = float("inf"), float("nan")
OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": box_iou,
    "generalized": generalized_box_iou,
    "distance": distance_box_iou,
    "complete": complete_box_iou,
}
kinds = pytest.mark.parametrize("kind", OPS)


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(*shape, 4), never of size zero, almost never with equal coordinates."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 60
    size = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 60 + 1
    return torch.cat([corner, corner + size], -1).to(dtype)


def samples(device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (boxes1, boxes2)."""

    def boxes(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4).to(device)

    unit, shifted, far = [0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 70]
    many = boxes(unit, shifted, far)
    table = {
        "hand-worked": (boxes(unit), many),
        "empty": (boxes(), boxes()),
        "no rows": (boxes(), many),
        "no columns": (many, boxes()),
        "one": (boxes(unit), boxes(unit)),
        "touching": (boxes(unit), boxes([10, 0, 20, 10], [10, 10, 20, 20])),
        "zero area": (boxes([5, 5, 5, 5], [5, 5, 5, 9], unit), boxes([5, 5, 5, 5], [3, 5, 9, 5])),
        "inverted": (boxes([9, 0, 3, 10], [10, 10, 0, 0]), boxes(unit, shifted)),
        "far from zero": (many + 2**16, many + 2**16),
        "non-contiguous": (
            random_boxes(20, 2).to(device)[:, 1],
            random_boxes(4, 30).to(device)[0].t().contiguous().t(),
        ),
        "batched": (random_boxes(3, 5).to(device), random_boxes(3, 17, seed=1).to(device)),
        "batched and expanded": (
            random_boxes(7).to(device).expand(3, 7, 4),
            random_boxes(3, 17, seed=1).to(device),
        ),
        "batch of none": (random_boxes(0, 5).to(device), random_boxes(0, 17).to(device)),
        "many columns": (random_boxes(3).to(device), random_boxes(2100, seed=1).to(device)),
        "many rows": (random_boxes(2100).to(device), random_boxes(3, seed=1).to(device)),
    }
    for m in range(1, 7):  # rows begin at every offset within a vector
        table[f"batched, {m} columns"] = (
            random_boxes(3, 37).to(device),
            random_boxes(3, m, seed=1).to(device),
        )
    table["between vectors"] = (
        random_boxes(6).to(device).flatten()[1:-3].view(5, 4),
        random_boxes(34, seed=1).to(device).flatten()[3:-1].view(33, 4),
    )
    for n in (15, 16, 17, 63, 64, 65, 257):
        table[f"random {n}"] = (random_boxes(5).to(device), random_boxes(n, seed=n).to(device))
    return table


SAMPLES = list(samples("cpu"))


@kinds
@pytest.mark.parametrize("name", SAMPLES)
def test_equals_reference(kind, name, device):
    boxes1, boxes2 = samples(device)[name]
    got = OPS[kind](boxes1, boxes2)
    expected = reference.box_iou(boxes1.cpu(), boxes2.cpu(), kind)
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=2e-6)


def test_hand_worked(device):
    boxes1, boxes2 = samples(device)["hand-worked"]
    # The same box; shifted by half its width: IoU 1/3, hull area 150; far away: hull 60 x 70.
    expected = {
        "iou": [1, 1 / 3, 0],
        "generalized": [1, 1 / 3, -(4200 - 300) / 4200],
        "distance": [1, 1 / 3 - 25 / 325, -(50**2 + 55**2) / (60**2 + 70**2)],
    }
    for kind, row in expected.items():
        got = OPS[kind](boxes1, boxes2)[0]
        torch.testing.assert_close(got.cpu(), torch.tensor(row), rtol=1e-6, atol=1e-6)


@kinds
@pytest.mark.parametrize("name", SAMPLES)
def test_gradient_equals_reference(kind, name, device):
    pair = [boxes.double().requires_grad_() for boxes in samples(device)[name]]
    out = OPS[kind](*pair)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = torch.autograd.grad(out, pair, grad.to(device))
    cpu = [boxes.detach().cpu().requires_grad_() for boxes in pair]
    expected = torch.autograd.grad(reference.box_iou(cpu[0], cpu[1], kind), cpu, grad)
    for a, b in zip(got, expected, strict=True):
        assert a.isfinite().all()
        # In these samples the gradient convention differs from autograd's: csrc/geometry/box_iou.h.
        if name not in ("touching", "zero area", "inverted"):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-12)


@kinds
def test_gradient_in_float32(kind, device):
    pair = [random_boxes(40), random_boxes(30, seed=1)]
    grads = []
    for dtype, where in ((torch.float32, device), (torch.float64, "cpu")):
        leaves = [boxes.to(where, dtype).requires_grad_() for boxes in pair]
        grads.append(torch.autograd.grad(OPS[kind](*leaves).sum(), leaves))
    for a, b in zip(*grads, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-5)


# Not "complete": the weight of its aspect term is a constant, so its gradient is not exact.
@pytest.mark.parametrize("kind", ["iou", "generalized", "distance"])
def test_gradcheck(kind, device):
    pair = [random_boxes(2, n, seed=n, dtype=torch.float64) for n in (3, 4)]
    leaves = [boxes.to(device).requires_grad_() for boxes in pair]
    assert torch.autograd.gradcheck(OPS[kind], leaves, nondet_tol=0.0)


@kinds
def test_equal_coordinates_split_the_gradient(kind, device):
    def grads(op: Callable[[Tensor, Tensor], Tensor], where: str) -> tuple[Tensor, ...]:
        rows = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 8], [3, 2, 12, 10]], dtype=torch.float64)
        pair = rows.to(where).requires_grad_(), rows[:2].to(where).requires_grad_()
        return torch.autograd.grad(op(*pair).sum(), pair)

    expected = grads(lambda a, b: reference.box_iou(a, b, kind), "cpu")
    for a, b in zip(grads(OPS[kind], device), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b)


@kinds
def test_no_second_derivative(kind, device):
    pair = [random_boxes(3, dtype=torch.float64).to(device).requires_grad_() for _ in range(2)]
    first = torch.autograd.grad(OPS[kind](*pair).sum(), pair, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first[0].sum().backward()


@kinds
def test_equals_torchvision(kind, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    op = OPS[kind]
    theirs = getattr(torchvision.ops, op.__name__)
    eps = {"eps": 1e-3} if kind in ("distance", "complete") else {}
    pair = [random_boxes(50, dtype=torch.float64), random_boxes(70, seed=1, dtype=torch.float64)]
    ours_in = [boxes.to(device).requires_grad_() for boxes in pair]
    theirs_in = [boxes.requires_grad_() for boxes in pair]
    ours, expected = op(*ours_in, **eps), theirs(*theirs_in, **eps)
    torch.testing.assert_close(ours.cpu(), expected)
    grad = torch.rand_like(expected)
    got = torch.autograd.grad(ours, ours_in, grad.to(device))
    for a, b in zip(got, torch.autograd.grad(expected, theirs_in, grad), strict=True):
        torch.testing.assert_close(a.cpu(), b)


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(kind, dtype, device):
    boxes1, boxes2 = random_boxes(9, dtype=dtype), random_boxes(33, seed=1, dtype=dtype)
    got = OPS[kind](boxes1.to(device), boxes2.to(device))
    assert got.equal(OPS[kind](boxes1.float().to(device), boxes2.float().to(device)))
    leaf = boxes1.to(device).requires_grad_()
    mixed = OPS[kind](leaf, boxes2.double().to(device))
    assert mixed.dtype == torch.float64
    (grad,) = torch.autograd.grad(mixed.sum(), leaf)
    assert grad.dtype == dtype
    assert grad.isfinite().all()


def test_plain_iou_is_never_nan(device):
    boxes = torch.tensor(
        [[0, 0, 2, 2], [NAN, 0, 1, 1], [0, 0, INF, 1], [-INF, 0, INF, 1], [0, 0, 1e30, 1e30]]
    )
    got = box_iou(boxes.to(device), boxes.to(device))
    assert got.isfinite().all()
    assert got[1:, 1:].eq(0).all()


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20))
def test_laws(seed, n, m):
    boxes1, boxes2 = random_boxes(n, seed=seed), random_boxes(m, seed=seed + 1)
    plain = box_iou(boxes1, boxes2)
    assert plain.min() >= 0
    assert plain.max() <= 1 + 1e-6
    for kind, op in OPS.items():
        got = op(boxes1, boxes2)
        assert (got <= plain + 1e-6).all()
        torch.testing.assert_close(got, op(boxes2, boxes1).t(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got, op(boxes1 * 4, boxes2 * 4), rtol=1e-5, atol=1e-5)
        mirrored = [b[:, [1, 0, 3, 2]] for b in (boxes1, boxes2)]
        if kind != "complete":
            torch.testing.assert_close(got, op(*mirrored), rtol=1e-5, atol=1e-5)


@kinds
def test_result_does_not_depend_on_the_thread_count(kind):
    pair = [boxes.requires_grad_() for boxes in (random_boxes(300), random_boxes(600, seed=1))]
    results = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            out = OPS[kind](*pair)
            results.append((out, *torch.autograd.grad(out.square().sum(), pair)))
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
        pair = [boxes.requires_grad_() for boxes in samples(device)[name]]
        out = OPS[kind](*pair)
        results.append([t.detach().cpu() for t in (out, *torch.autograd.grad(out.sum(), pair))])
    assert results[0][0].equal(results[1][0])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@kinds
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_equal_torchvision(kind, dtype, device):
    torchvision = pytest.importorskip("torchvision")
    pair = [random_boxes(n, seed=n).to(dtype) for n in (6, 9)]
    theirs = getattr(torchvision.ops, OPS[kind].__name__)
    for boxes1, boxes2 in (pair, (pair[0], pair[1].double()), (pair[0].float(), pair[1])):
        got = OPS[kind](boxes1.to(device), boxes2.to(device)).cpu()
        assert got.dtype == theirs(boxes1, boxes2).dtype
        assert got.equal(OPS[kind](boxes1.to(got.dtype), boxes2.to(got.dtype)))
        # In floating types, for torchvision's differences of uint8 wrap around.
        expected = theirs(boxes1.to(got.dtype), boxes2.to(got.dtype))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
def test_formats_and_integers_equal_torchvision(fmt, dtype, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    pair = [(random_boxes(n, seed=n) * 4).round() / 4 for n in (5, 9)]
    rows = [torchvision.ops.box_convert(boxes, "xyxy", fmt).to(dtype) for boxes in pair]
    wide = rows if dtype == torch.int64 else [boxes.double() for boxes in rows]
    corners = [torchvision.ops.box_convert(boxes.double(), fmt, "xyxy") for boxes in wide]
    expected = reference.box_iou(*corners, "iou")
    got = box_iou(*(boxes.to(device) for boxes in rows), fmt=fmt).cpu()
    assert got.dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)
    if dtype != torch.float16 and "fmt" in torchvision.ops.box_iou.__code__.co_varnames:
        theirs = torchvision.ops.box_iou(*rows, fmt=fmt)
        torch.testing.assert_close(got, theirs.to(got.dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fmt", ["xywh", "cxcywh"])
def test_gradient_through_formats(fmt):
    sides = torch.tensor([[8.0, 9, 7, 6], [3, 4, 9, 9]], dtype=torch.float64)
    pair = [sides.clone().requires_grad_(), (sides + 1.3).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: box_iou(a, b, fmt), pair)


@pytest.mark.parametrize("m", [3, 31, 33, 256, 300])
def test_gradient_of_few_columns_does_not_depend_on_the_thread_count(m):
    pair = [random_boxes(40).requires_grad_(), random_boxes(m, seed=1).requires_grad_()]
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(torch.autograd.grad(box_iou(*pair).square().sum(), pair))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


@kinds
def test_opcheck(kind, device):
    op = getattr(torch.ops.fastdet, OPS[kind].__name__)
    eps = (1e-7,) if kind in ("distance", "complete") else ()
    pair = [random_boxes(2, 3).to(device), random_boxes(2, 5, seed=1).to(device)]
    torch.library.opcheck(op, (*(boxes.requires_grad_() for boxes in pair), *eps))
    pair = [boxes.detach()[0] for boxes in pair]
    grad = torch.rand(3, 5, device=device)
    torch.library.opcheck(torch.ops.fastdet.box_iou_backward, (grad, *pair, 1e-7, kind))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def cost(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return generalized_box_iou(boxes1, boxes2).max(dim=1).values.sum()

    results = []
    for run in (cost, torch.compile(cost, fullgraph=True, dynamic=True)):
        pair = [random_boxes(n, seed=n).to(device).requires_grad_() for n in (6, 9)]
        out = run(*pair)
        results.append((out, *torch.autograd.grad(out, pair)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input_is_named(device):
    boxes = random_boxes(2, 5).to(device)
    with pytest.raises(
        RuntimeError,
        match=r"::distance_box_iou: boxes1: expected floating \(N, 4\) or \(B, N, 4\), got Bool",
    ):
        distance_box_iou(boxes > 0, boxes)
    with pytest.raises(RuntimeError, match=r"box_iou: boxes2: .* got ComplexFloat \(2, 5, 4\)"):
        box_iou(boxes, boxes.to(torch.complex64))
    with pytest.raises(RuntimeError, match=r"boxes1: expected .*got Float \(2, 5, 3\)"):
        box_iou(boxes[..., :3], boxes, fmt="xywh")
    with pytest.raises(ValueError, match=r"fmt: expected one of .*, got 'cxcywhr'"):
        box_iou(boxes, boxes, fmt="cxcywhr")
    for op in (distance_box_iou, complete_box_iou):
        for eps in (-1e-7, NAN, INF):
            with pytest.raises(ValueError, match=f"eps: expected a finite number >= 0, got {eps}"):
                op(boxes, boxes, eps)
    with pytest.raises(
        RuntimeError,
        match=r"generalized_box_iou: boxes2: expected floating \(M, 4\), or \(B, M, 4\) with the B "
        r"of boxes1, got Float \(1, 5, 4\)",
    ):
        generalized_box_iou(boxes, boxes[:1])
    with pytest.raises(RuntimeError, match=r"distance_box_iou: boxes2: .* got Float \(5, 4\)"):
        distance_box_iou(boxes, boxes[0])
    with pytest.raises(RuntimeError, match=r"complete_box_iou: boxes1: .* got Float \(2, 5, 3\)"):
        complete_box_iou(boxes[..., :3], boxes)
    backward = torch.ops.fastdet.box_iou_backward
    with pytest.raises(RuntimeError, match=r"grad: expected one number for each pair"):
        backward(torch.ones(5, 4, device=device), boxes[0], boxes[0], 0.0, "iou")
    with pytest.raises(RuntimeError, match=r"kind: expected iou, .* got 'rotated'"):
        backward(torch.ones(5, 5, device=device), boxes[0], boxes[0], 0.0, "rotated")
