# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
import torch
from torch import Tensor

from fastdet.ops.quantize_map import quantize_map


def noise(*shape: int) -> Tensor:
    return 8 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


INPUTS = {
    "channels_last": noise(2, 5, 7, 9).to(memory_format=torch.channels_last),
    "NCHW": noise(2, 5, 7, 9),
    "strided": noise(4, 6, 14, 18)[::2, ::2, ::2, 1::2],
    "expanded": noise(1, 5, 7, 1).expand(2, 5, 7, 9),
    "no image": noise(0, 5, 7, 9),
    "rows": noise(30, 17),
    "transposed rows": noise(17, 30).T,
    "number": noise(1)[0],
    "large": noise(1, 64, 130, 121),
    **{f"{n} numbers": noise(n) for n in (15, 16, 17, 63, 64, 65)},
    "ties": torch.arange(-40, 600) / 2,
    "beyond": torch.tensor([-1e30, 1e30, -float("inf"), float("inf"), float("nan"), -0.0]),
}


def reference(x: Tensor, scale: float, zero_point: int) -> np.ndarray:
    """The quotient in float32, as in ONNX's definition; NumPy rounds ties to even."""
    steps = x.float().numpy() / np.float32(scale)
    steps = np.nan_to_num(steps, nan=-1e9, posinf=1e9, neginf=-1e9).astype(np.float64)
    return np.clip(np.round(steps) + zero_point, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "zero_point"), [(1.0, 0), (0.1, 128), (0.037, 255), (3.0, 7)])
@pytest.mark.parametrize("name", INPUTS)
def test_equals_the_definition(
    name: str, scale: float, zero_point: int, dtype: torch.dtype
) -> None:
    x = INPUTS[name].to(dtype)
    found = quantize_map(x, scale, zero_point)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), reference(x, scale, zero_point))
    form = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    assert found.is_contiguous(memory_format=form)


@pytest.mark.parametrize(
    ("x", "scale", "zero_point", "message"),
    [
        (noise(3).double(), 1.0, 0, "input: expected Float or BFloat16 on cpu"),
        (noise(3), 0.0, 0, "scale: expected a number above 0"),
        (noise(3), float("nan"), 0, "scale: expected a number above 0"),
        (noise(3), 1.0, 256, r"zero_point: expected a number in \[0, 255\], got 256"),
        (noise(3), 1.0, -1, "zero_point: expected"),
    ],
)
def test_bad_input(x: Tensor, scale: float, zero_point: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"fastdet::quantize_map: {message}"):
        quantize_map(x, scale, zero_point)


@pytest.mark.parametrize("name", ["channels_last", "NCHW", "strided", "rows", "number"])
def test_opcheck(name: str) -> None:
    torch.library.opcheck(torch.ops.fastdet.quantize_map, (INPUTS[name], 0.1, 128))
