# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions of 8-bit integers by Winograd's algorithm, against its definition in float64."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdet import _native
from fastdet.ops.winograd_int8 import (
    RESULTS,
    Int8Filters,
    winograd_conv_int8,
    winograd_filters_int8,
    winograd_positions,
    winograd_roundings_int8,
)

isas = pytest.mark.parametrize("isa", _native.usable_cpu_isas())
OF_INPUTS = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1.0]]).double()
OF_FILTERS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1.0]]).double()
OF_PRODUCTS = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1.0]]).double()
SUMMAND_GRID = {"summand_scale": 0.37, "summand_zero_point": 90}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def bytes_of(*shape: int) -> Tensor:
    q = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator())
    return q.contiguous(memory_format=torch.channels_last)


def weight_of(outputs: int, inputs: int) -> Tensor:
    shape = outputs, inputs, 3, 3
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator())


def both_sides(matrix: Tensor, tiles: Tensor) -> Tensor:
    return matrix @ tiles @ matrix.T


def positions_of(x: Tensor, zero_point: int) -> Tensor:
    """The transformed inputs (B, C, h, w, 4, 4), before rounding."""
    height, width = x.shape[2:]
    padded = F.pad(x.double() - zero_point, (1, 1 + width % 2, 1, 1 + height % 2))
    return both_sides(OF_INPUTS, padded.unfold(2, 4, 2).unfold(3, 4, 2))


def roundings_of(zero_point: int, part: float = 1.0) -> Tensor:
    """For a part of the range of all inputs of the integers."""
    ranges = torch.tensor([[-510.0, 510.0]]).repeat(16, 1)
    ranges[5] = torch.tensor([-4.0 * zero_point, 4.0 * (255 - zero_point)])
    return winograd_roundings_int8(part * ranges, 1.0)


def integers_of(filters: Int8Filters, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """The integers (K, C, 4, 4) and their steps (K, 1, 4, 4)."""
    panels, _, quads = filters.filters.shape[:3]
    integers = filters.filters.permute(0, 3, 2, 4, 1).reshape(32 * panels, 4 * quads, 4, 4)
    assert not integers[outputs:].any()
    assert not integers[:, inputs:].any()
    assert torch.equal(filters.sums, integers.sum(1).flatten(1).T)
    steps = filters.steps.T.reshape(-1, 1, 4, 4)
    return integers[:outputs, :inputs].double(), steps[:outputs].double()


def defined(
    x: Tensor, zero_point: int, roundings: Tensor, filters: Int8Filters, outputs: int
) -> Tensor:
    """The convolution in float64 with both factors of the products rounded to bytes."""
    height, width = x.shape[2:]
    multipliers, middles = (column.view(4, 4) for column in roundings.double().unbind(1))
    steps_of_inputs = positions_of(x, zero_point) * multipliers / 1024
    bytes_ = ((steps_of_inputs + 0.5).floor() + middles).clamp(0, 255)
    inputs = (bytes_ - middles) * 1024 / multipliers
    integers, steps = integers_of(filters, outputs, x.shape[1])
    products = torch.einsum("bchwij,kcij->bkhwij", inputs, integers * steps / 4)
    tiles = both_sides(OF_PRODUCTS, products).permute(0, 1, 2, 4, 3, 5)
    return tiles.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def samples() -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (input, weight): sizes around those of tiles, channels around vectors and panels."""
    table = {
        f"{height} x {width}": (bytes_of(2, 16, height, width), weight_of(32, 16))
        for height, width in [(1, 1), (1, 2), (2, 1), (3, 3), (4, 4), (5, 4), (8, 7), (13, 19)]
    }
    table |= {f"{n} tiles": (bytes_of(1, 16, 2, 2 * n), weight_of(32, 16)) for n in range(5, 26)}
    table |= {
        f"{inputs} -> {outputs}": (bytes_of(1, inputs, 6, 7), weight_of(outputs, inputs))
        for inputs, outputs in itertools.product((1, 3, 15, 17, 33, 64, 66), (1, 31, 36, 65))
    }
    table |= {
        "many tiles": (bytes_of(3, 8, 50, 61), weight_of(9, 8)),
        "many tiles and channels": (bytes_of(1, 65, 57, 60), weight_of(49, 65)),
        "many channels": (bytes_of(1, 1500, 4, 4), weight_of(70, 1500)),
        "many filters": (bytes_of(2, 20, 10, 9), weight_of(301, 20)),
        "NCHW": (bytes_of(2, 6, 5, 8).contiguous(), weight_of(7, 6)),
        "strided": (bytes_of(2, 6, 10, 16)[:, :, ::2, 1::2], weight_of(7, 12)[:, ::2]),
        "expanded": (bytes_of(1, 6, 5, 1).expand(3, 6, 5, 4), weight_of(7, 6)),
        "no image": (bytes_of(0, 6, 5, 8), weight_of(7, 6)),
        "no weight": (bytes_of(1, 6, 5, 8), 0 * weight_of(7, 6)),
    }
    return table


named = pytest.mark.parametrize("name", samples())


@named
def test_filters_are_rounded_once(name: str) -> None:
    """To a 127th of the largest number of their output and position."""
    weight = samples()[name][1]
    exact = 4 * both_sides(OF_FILTERS, weight.double())
    integers, steps = integers_of(winograd_filters_int8(weight), *weight.shape[:2])
    assert ((integers * steps - exact).abs() <= steps * 0.50001).all()
    largest = exact.abs().amax(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(steps, largest / 127, rtol=1e-6, atol=0.0)


@isas
@named
@pytest.mark.usefixtures("instruction_set")
def test_equals_the_definition(name: str, isa: str) -> None:
    x, weight = samples()[name]
    outputs = len(weight)
    scales = 1e-3 * (1 + torch.rand(outputs, generator=generator()))
    bias = 50 * torch.randn(outputs, generator=generator())
    filters = winograd_filters_int8(weight)
    summand = bytes_of(len(x), outputs, *x.shape[2:])
    roundings = roundings_of(77, 0.6)  # some are clipped
    plain = defined(x, 77, roundings, filters, outputs) * scales.double()[:, None, None]
    plain += bias.double()[:, None, None]
    added = 0.37 * (summand.double() - 90)
    largest = float(plain.abs().max()) if plain.numel() else 1.0
    scale, zero_point = largest / 150, 100
    grid = {"scale": scale, "result_zero_point": zero_point}
    of_sum = {"summand": summand} | SUMMAND_GRID
    for activation, dtype, has_sum in itertools.product(("none", "relu"), RESULTS, (False, True)):
        rest: dict[str, Any] = (grid if dtype == torch.uint8 else {}) | (of_sum if has_sum else {})
        arguments = roundings, filters, scales, bias, activation, dtype
        found = winograd_conv_int8(x, 77, *arguments, **rest)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        expected = plain + added if has_sum else plain
        expected = expected.relu() if activation == "relu" else expected
        if dtype == torch.uint8:
            steps = expected / scale + zero_point
            distance = (found.double() - steps.clamp(0, 255)).abs()
            assert (distance <= 0.5 + 1e-4).all()
        else:
            relative = 2**-8 if dtype == torch.bfloat16 else 0.0
            torch.testing.assert_close(found.double(), expected, rtol=relative, atol=2e-6 * largest)


@named
def test_every_instruction_set_gives_the_same_bits(name: str) -> None:
    x, weight = samples()[name]
    filters, ones = winograd_filters_int8(weight), torch.ones(len(weight))
    found = []
    before = _native.cpu_isa()
    for isa in _native.usable_cpu_isas():
        _native.set_cpu_isa(isa)
        arguments = roundings_of(3, 0.6), filters, 1e-3 * ones, ones, "none", torch.float32
        found.append(winograd_conv_int8(x, 3, *arguments))
    _native.set_cpu_isa(before)
    assert all(torch.equal(found[0], other) for other in found)


@isas
@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("position", range(16))
@pytest.mark.parametrize("sign", [1, -1])
def test_no_input_is_clipped(position: int, sign: int, zero_point: int, isa: str) -> None:
    """The inputs with the largest number of either sign at a position: it is off by 4 at most."""
    weights = torch.zeros(4, 4).double()
    weights.view(-1)[position] = sign
    chosen = both_sides(OF_INPUTS.T, weights) > 0
    x = (255 * chosen).to(torch.uint8)[None, None].contiguous(memory_format=torch.channels_last)
    x = F.pad(x, (1, 1, 1, 1), value=zero_point)  # so that they are the inputs of one tile
    weight = torch.full((1, 1, 3, 3), 127, dtype=torch.int8)
    weight[0, 0, 0, 1] = -90
    filters = winograd_filters_int8(weight)
    one, zero = torch.ones(1), torch.zeros(1)
    roundings = roundings_of(zero_point)
    arguments = roundings, filters, one, zero, "none", torch.float32
    found = winograd_conv_int8(x, zero_point, *arguments)
    exact = F.conv2d(F.pad(x.double() - zero_point, (1, 1, 1, 1)), weight.double())
    assert ((found - exact).abs() <= 4 * 16 * 127 * 2.25).all()
    assert torch.allclose(found.double(), defined(x, zero_point, roundings, filters, 1), atol=1)


def test_is_near_the_direct_convolution() -> None:
    x, weight = bytes_of(1, 256, 24, 24), weight_of(256, 256)
    numbers = winograd_positions(x.float() - 100)
    roundings = winograd_roundings_int8(torch.stack((numbers.amin(1), numbers.amax(1)), 1), 1.0)
    one, filters = torch.ones(256), winograd_filters_int8(weight)
    found = winograd_conv_int8(x, 100, roundings, filters, one, 0 * one, "none", torch.float32)
    exact = F.conv2d(F.pad(x.double() - 100, (1, 1, 1, 1)), weight.double())
    assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("sides", [(1, 1), (4, 6), (5, 7)])
def test_positions_are_the_transformed_inputs(sides: tuple[int, int]) -> None:
    x = bytes_of(2, 3, *sides)
    expected = positions_of(x, 9).flatten(4).flatten(0, 3).T
    assert torch.equal(winograd_positions(x.float() - 9).double(), expected)


def test_roundings() -> None:
    ranges = torch.zeros(16, 2)  # unknown: half of 8 * 255 to either side
    ranges[1] = torch.tensor([-0.1, 0.1])  # a step of 1 is enough
    ranges[2] = torch.tensor([-20.0, 31.0])
    ranges[3] = torch.tensor([0.0, 1e9])  # more than the integers can give
    found = winograd_roundings_int8(ranges, 0.1)
    assert found.dtype == torch.int32
    assert found[:4].tolist() == [[128, 128], [1024, 1], [512, 100], [128, 0]]
    assert (found[4:] == found[0]).all()


def test_the_number_of_threads_changes_nothing() -> None:
    filters, one = winograd_filters_int8(weight_of(100, 40)), torch.ones(100)
    before = torch.get_num_threads()
    for sides in ((5, 6), (60, 70)):
        x = bytes_of(1, 40, *sides)
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            arguments = roundings_of(9), filters, one, one, "relu", torch.float32
            found.append(winograd_conv_int8(x, 9, *arguments))
        torch.set_num_threads(before)
        assert all(torch.equal(found[0], other) for other in found)


def test_autocast_changes_no_filter() -> None:
    weight = weight_of(40, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = winograd_filters_int8(weight)
    assert all(map(torch.equal, found, winograd_filters_int8(weight)))


X, FILTERS, ONES = bytes_of(1, 6, 4, 4), winograd_filters_int8(weight_of(40, 6)), torch.ones(40)
GOOD: dict[str, Any] = {
    "input": X,
    "zero_point": 0,
    "roundings": roundings_of(0),
    "filters": FILTERS,
    "scales": ONES,
    "bias": ONES,
    "activation": "none",
    "dtype": torch.uint8,
    "summand": bytes_of(1, 40, 4, 4),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": X.float()}, r"input: expected Byte \(B, C, H, W\) on cpu"),
        ({"input": X[0]}, "input: expected Byte"),
        ({"input": X.repeat(1, 5462, 1, 1)}, "input: expected .* C up to 32768"),
        ({"input": bytes_of(1, 9, 4, 4)}, "filters: expected the result of winograd_filters_int8"),
        ({"roundings": roundings_of(0).float()}, "roundings: expected the result of"),
        ({"roundings": roundings_of(0)[:15]}, "roundings: expected the result of"),
        ({"filters": FILTERS._replace(filters=FILTERS.filters.int())}, "filters: expected"),
        ({"filters": FILTERS._replace(steps=FILTERS.steps[:, :40])}, "steps: expected"),
        ({"filters": FILTERS._replace(sums=FILTERS.steps)}, "sums: expected"),
        ({"scales": ONES.double()}, r"scales: expected Float \(channels,\) on cpu"),
        ({"scales": ONES[:8], "bias": ONES[:8]}, "filters: expected"),
        ({"bias": ONES[:39]}, r"bias: expected Float \(channels,\) on cpu"),
        ({"zero_point": 256}, r"zero_point: expected a number in \[0, 255\], got 256"),
        ({"activation": "swish"}, "activation: expected 0 or 1, got 2"),
        ({"scale": 0.0}, "result_scale: expected a number above 0"),
        ({"scale": math.nan}, "result_scale: expected a number above 0"),
        ({"result_zero_point": -1}, "result_zero_point: expected a number"),
        ({"summand": GOOD["summand"].float()}, r"summand: expected Byte \(B, C, H, W\) on cpu"),
        ({"summand": bytes_of(1, 40, 4, 5)}, "summand: expected the B, H and W of the input"),
        ({"summand": bytes_of(1, 39, 4, 4)}, "summand: expected the channels of the output"),
        ({"summand_scale": -1.0}, "summand_scale: expected a number above 0"),
        ({"summand_zero_point": 300}, "summand_zero_point: expected a number"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    winograd_conv_int8(**GOOD)
    with pytest.raises(RuntimeError, match=f"fastdet::winograd_conv_int8: {message}"):
        winograd_conv_int8(**GOOD | change)


@pytest.mark.parametrize("dtype", RESULTS)
def test_opcheck(dtype: torch.dtype) -> None:
    summand = GOOD["summand"]
    rest = summand, *SUMMAND_GRID.values(), 1, 0.5, 3, RESULTS.index(dtype)
    arguments = X, 5, roundings_of(5), *FILTERS, ONES, ONES, *rest
    torch.library.opcheck(torch.ops.fastdet.winograd_conv_int8, arguments)
    torch.library.opcheck(
        torch.ops.fastdet.winograd_conv_int8, (*arguments[:8], None, *arguments[9:])
    )
