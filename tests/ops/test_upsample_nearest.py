# SPDX-License-Identifier: BSD-3-Clause
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdet.ops.upsample_nearest import upsample_nearest


def noise(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last)


INPUTS = {
    "channels_last": noise(2, 5, 7, 9),
    "one channel": noise(2, 1, 7, 9),
    "one pixel": noise(2, 5, 1, 1),
    "NCHW": noise(2, 5, 7, 9).contiguous(),
    "strided": noise(4, 6, 14, 18)[::2, ::2, ::2, 1::2],
    "expanded": noise(1, 5, 7, 1).expand(2, 5, 7, 9),
    "no image": noise(0, 5, 7, 9),
    "no channel": noise(2, 0, 7, 9),
    "large": noise(1, 64, 130, 121),
}
SIZES = [(7, 9), (14, 18), (13, 17), (15, 19), (3, 4), (1, 1), (70, 11), (200, 304)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", INPUTS)
def test_equals_torchs(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    x = INPUTS[name].to(dtype)
    found = upsample_nearest(x, *size)
    # torch cannot resize maps without channels.
    expected = F.interpolate(x, size, mode="nearest") if x.shape[1] else x.new_empty(2, 0, *size)
    assert torch.equal(found, expected)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found._is_view()


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 31, 99, 1000, 4097])
def test_every_pixel_is_torchs(side: int) -> None:
    """Output sizes up to three times the input, all below 300: the source pixel is rounded."""
    x = torch.arange(float(side)).reshape(1, 1, 1, side)
    for width in {*range(1, min(3 * side, 300)), 2 * side - 1, 2 * side, 3 * side + 1}:
        found = upsample_nearest(x, 1, width)
        assert torch.equal(found, F.interpolate(x, (1, width), mode="nearest")), width


@pytest.mark.parametrize(
    ("x", "size", "message"),
    [
        (torch.ones(1, 2, 3), (2, 2), r"input: expected .*got Float \(1, 2, 3\)"),
        (noise(1, 2, 3, 4).long(), (2, 2), "input: expected floating"),
        (noise(1, 2, 0, 4), (2, 2), "input: expected .*H and W above 0"),
        (noise(1, 2, 3, 4), (0, 2), r"size: expected numbers in \[1, 2\*\*24\], got 0"),
        (noise(1, 2, 3, 4), (2, 2**25), "size: expected"),
    ],
)
def test_bad_input(x: Tensor, size: tuple[int, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"fastdet::upsample_nearest: {message}"):
        upsample_nearest(x, *size)


@pytest.mark.parametrize("name", ["channels_last", "NCHW", "strided", "one pixel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    arguments = INPUTS[name].to(dtype), 13, 17
    torch.library.opcheck(torch.ops.fastdet.upsample_nearest, arguments)
