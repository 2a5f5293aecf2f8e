# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable

import pytest
import torch
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
    """(*shape, 4); neither zero-sized nor, but by a miracle, with equal coordinates."""
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
        if name not in ("touching", "zero area", "inverted"):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-12)
