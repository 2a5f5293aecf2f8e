# SPDX-License-Identifier: BSD-3-Clause
"""Max pooling against torch's, bit for bit: values, which place wins, and gradients."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdet.ops.max_pool import _chosen, max_pool2d

STEM = ((3, 3), (2, 2), (1, 1))
GEOMETRIES: list[Any] = [
    STEM,
    ((1, 1), (2, 2), (0, 0)),
    ((2, 2), (2, 2), (0, 0)),
    ((3, 2), (1, 3), (1, 0)),
    ((5, 4), (2, 1), (2, 2)),
    ((2, 3), (5, 4), (1, 1)),
    ((7, 5), (3, 3), (3, 2)),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def special() -> Tensor:
    """NaN, infinities, zeros of both signs and ties, several in each window."""
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0])
    chosen = torch.randint(7, (2, 19, 11, 12), generator=torch.Generator().manual_seed(0))
    return values[chosen].to(memory_format=torch.channels_last)


INPUTS = {
    **{f"{c} channels": noise(2, c, 9, 8) for c in (1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65)},
    "NCHW": noise(2, 5, 9, 11).contiguous(),
    "strided": noise(4, 6, 18, 22)[::2, ::2, ::2, 1::2],
    "expanded": noise(1, 5, 7, 1).expand(2, 5, 7, 9),
    "ties": noise(2, 20, 9, 9).sign(),
    "special": special(),
    "only -inf": torch.full((1, 3, 8, 8), -math.inf),
    "no image": noise(0, 5, 7, 9),
    "no channel": noise(2, 0, 7, 9),
    "small": noise(2, 5, 6, 5),
}


def bits(x: Tensor) -> Tensor:
    """With one NaN: in bfloat16, torch's vectors and its scalar code write different ones."""
    x = x.contiguous().masked_fill(x.isnan(), math.nan)
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", INPUTS)
def test_equals_torchs(name: str, geometry: Any, dtype: torch.dtype) -> None:
    x = INPUTS[name].to(dtype)
    plain = max_pool2d(x, *geometry)
    found, argmax = torch.ops.fastdet.max_pool2d_with_argmax(x, *geometry)
    for map in (plain, found, argmax):
        assert map.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype
    assert argmax.dtype == torch.uint8
    assert torch.equal(bits(plain), bits(found))
    if not x.numel():
        return
    expected, indices = F.max_pool2d(x, *geometry, return_indices=True)
    assert torch.equal(bits(found), bits(expected))
    assert torch.equal(_chosen(argmax, x.shape[2:], *geometry), indices)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 31, 63, 64, 65, 130])
def test_bytes(channels: int, geometry: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, channels, 9, 8), dtype=torch.uint8, generator=generator)
    for form in (x, x.contiguous(memory_format=torch.channels_last)):
        found = max_pool2d(form, *geometry)
        assert found.dtype == torch.uint8
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found.float(), F.max_pool2d(x.float(), *geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", [name for name in INPUTS if INPUTS[name].numel()])
def test_gradients_equal_torchs(name: str, geometry: Any) -> None:
    x = INPUTS[name].clone()
    grads = []
    for pool in (max_pool2d, F.max_pool2d):
        x = x.detach().requires_grad_()
        y = pool(x, *geometry)
        y.backward(noise(*y.shape, seed=1))
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_in_bfloat16(geometry: Any) -> None:
    """The sums of several windows are rounded once."""
    x = noise(2, 33, 9, 10)
    y, argmax = torch.ops.fastdet.max_pool2d_with_argmax(x, *geometry)
    grad = noise(*y.shape, seed=1).bfloat16()
    run = torch.ops.fastdet.max_pool2d_backward
    found = run(grad, argmax, *x.shape[2:], *geometry)
    assert found.dtype == torch.bfloat16
    exact = run(grad.float(), argmax, *x.shape[2:], *geometry)
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_do_not_matter(threads: int) -> None:
    x = noise(2, 40, 37, 35).requires_grad_()
    y = max_pool2d(x, *STEM)
    grad = noise(*y.shape, seed=1)
    (expected,) = torch.autograd.grad(y, x, grad)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        again = max_pool2d(x, *STEM)
        assert torch.equal(again, y)
        assert torch.equal(torch.autograd.grad(again, x, grad)[0], expected)
    finally:
        torch.set_num_threads(before)


def test_second_derivative() -> None:
    x = noise(1, 3, 7, 6).requires_grad_()

    def second(pool: Any) -> Tensor:
        (first,) = torch.autograd.grad((pool(x, *STEM) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    torch.testing.assert_close(second(max_pool2d), second(F.max_pool2d))


def test_forward_in_inference_keeps_no_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.fastdet, "max_pool2d_with_argmax", None)
    with torch.no_grad():
        max_pool2d(noise(1, 2, 5, 5).requires_grad_(), *STEM)
    max_pool2d(noise(1, 2, 5, 5), *STEM)


@pytest.mark.parametrize(
    ("x", "geometry", "message"),
    [
        (torch.ones(1, 2, 3), STEM, r"input: expected .*got Float \(1, 2, 3\)"),
        (noise(1, 2, 3, 4).double(), STEM, "input: expected Float, BFloat16 or Byte"),
        (noise(1, 2, 0, 4), ((2, 2), (2, 2), (1, 1)), "input: expected .*not smaller"),
        (noise(1, 2, 3, 4), ((4, 4), (2, 2), (0, 0)), "input: expected .*not smaller"),
        (noise(1, 2, 3, 4), ((3,), (2, 2), (1, 1)), "kernel: expected two numbers, got 1"),
        (noise(1, 2, 3, 4), ((0, 3), (2, 2), (0, 0)), r"kernel: expected .*\[1, 256\], got 0"),
        (noise(1, 2, 40, 40), ((17, 17), (2, 2), (0, 0)), "kernel: expected at most 256 places"),
        (noise(1, 2, 3, 4), ((3, 3), (2, 0), (1, 1)), "stride: expected .*got 0"),
        (noise(1, 2, 3, 4), ((3, 3), (2, 2), (2, 1)), r"padding: expected .*\[0, 1\], got 2"),
    ],
)
def test_bad_input(x: Tensor, geometry: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"fastdet::max_pool2d: {message}"):
        max_pool2d(x, *geometry)


@pytest.mark.parametrize(
    ("grad", "argmax", "size", "message"),
    [
        (torch.ones(1, 2, 4), torch.zeros(1, 2, 4).byte(), (8, 8), "grad: expected"),
        (noise(1, 2, 4, 4), torch.zeros(1, 2, 4, 3).byte(), (8, 8), "argmax: expected Byte"),
        (noise(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), (8, 8), "argmax: expected Byte"),
        (noise(1, 2, 4, 4), torch.zeros(1, 2, 4, 4).byte(), (8, 9), "size: expected .*got 9"),
    ],
)
def test_bad_gradient(grad: Tensor, argmax: Tensor, size: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"fastdet::max_pool2d_backward: {message}"):
        torch.ops.fastdet.max_pool2d_backward(grad, argmax, *size, *STEM)


@pytest.mark.parametrize("name", ["16 channels", "NCHW", "strided", "special"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    # Without NaN, which no comparison of results with themselves accepts.
    x, geometry = INPUTS[name].to(dtype).nan_to_num(), [list(pair) for pair in STEM]
    torch.library.opcheck(torch.ops.fastdet.max_pool2d, (x, *geometry))
    pool = torch.ops.fastdet.max_pool2d_with_argmax
    torch.library.opcheck(pool, (x.clone().requires_grad_(), *geometry))
    y, argmax = pool(x, *geometry)
    backward = torch.ops.fastdet.max_pool2d_backward
    grad = noise(*y.shape).to(dtype).requires_grad_()
    torch.library.opcheck(backward, (grad, argmax, *x.shape[2:], *geometry))
