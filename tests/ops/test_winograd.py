# SPDX-License-Identifier: BSD-3-Clause
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdet import _native
from fastdet.ops.winograd import (
    ACTIVATIONS,
    winograd_conv,
    winograd_filters,
    winograd_filters_grad,
    winograd_filters_turned,
)

ops = torch.ops.fastdet
isas = pytest.mark.parametrize("isa", _native.usable_cpu_isas())


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random maps in channels_last, which the kernels read without a copy."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def samples() -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (input, weight): sizes around those of tiles, channels around vectors and panels."""
    table = {
        f"{height} x {width}": (noise(2, 16, height, width), noise(32, 16, 3, 3))
        for height, width in [(1, 1), (1, 2), (2, 1), (3, 3), (4, 4), (5, 4), (8, 7), (13, 19)]
    }
    table |= {
        f"{n} tiles": (noise(1, 16, 4, 4 * n), noise(32, 16, 3, 3)) for n in (*range(5, 14), 23, 25)
    }
    table |= {
        f"{channels} -> {filters}": (noise(1, channels, 6, 7), noise(filters, channels, 3, 3))
        for channels, filters in itertools.product((1, 15, 17, 33, 64), (1, 31, 36, 65))
    }
    table |= {
        "many tiles": (noise(3, 8, 50, 61), noise(9, 8, 3, 3)),
        "many tiles and channels": (noise(1, 65, 57, 60), noise(49, 65, 3, 3)),
        "many channels": (noise(1, 700, 4, 4), noise(130, 700, 3, 3)),
        "many filters": (noise(2, 20, 10, 9), noise(601, 20, 3, 3)),
        "NCHW": (noise(2, 6, 5, 8).contiguous(), noise(7, 6, 3, 3).contiguous()),
        "strided": (noise(2, 6, 10, 16)[:, :, ::2, 1::2], noise(7, 12, 3, 3)[:, ::2]),
        "expanded": (noise(1, 6, 5, 1).expand(3, 6, 5, 4), noise(7, 6, 3, 3)),
        "no image": (noise(0, 6, 5, 8), noise(7, 6, 3, 3)),
    }
    return table


named = pytest.mark.parametrize("name", samples())


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    summand: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    filters = winograd_filters(weight)
    return winograd_conv(x, filters, bias, summand, weight.shape[0], activation)


def input_grad(grad: Tensor, weight: Tensor) -> Tensor:
    filters = winograd_filters_turned(weight)
    return winograd_conv(grad, filters, None, None, weight.shape[1], "none")


def assert_close(got: Tensor, expected: Tensor, terms: int) -> None:
    """Equal up to the rounding of a sum of `terms` products of numbers of size about 1."""
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-5 * terms**0.5)


@isas
@named
@pytest.mark.usefixtures("instruction_set")
def test_outputs_and_gradients_are_the_definitions(name: str, isa: str) -> None:
    x, weight = samples()[name]
    bias = noise(1, 1, 1, weight.shape[0])[0, 0, 0]
    exact_x, exact_weight = (leaf.double().requires_grad_() for leaf in (x, weight))
    expected = F.conv2d(exact_x, exact_weight, bias.double(), padding=1)
    output = conv(x, weight, bias)
    assert_close(output, expected, 9 * weight.shape[1])
    assert output.is_contiguous(memory_format=torch.channels_last)
    grad = noise(*output.shape, seed=1)
    assert conv(x, weight, bias, activation="relu").equal(output.relu())
    assert conv(x, weight, bias, summand=grad, activation="relu").equal((output + grad).relu())
    silu = conv(x, weight, bias, summand=grad, activation="swish")
    torch.testing.assert_close(silu, F.silu(output + grad), rtol=1e-6, atol=1e-30)

    expected.backward(grad.double())
    assert_close(input_grad(grad, weight), exact_x.grad, 9 * weight.shape[0])
    pixels = output.shape[0] * output.shape[2] * output.shape[3]
    assert_close(ops.winograd_filters_grad(grad, x), exact_weight.grad, pixels)


@isas
@named
@pytest.mark.usefixtures("instruction_set")
def test_bfloat16_is_rounded_once(name: str, isa: str) -> None:
    x, weight = samples()[name]
    x, weight = x.bfloat16(), weight.bfloat16()
    bias = noise(1, 1, 1, weight.shape[0])[0, 0, 0]
    summand = noise(len(x), len(weight), *x.shape[2:], seed=1).bfloat16()
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    atol = 5e-5 * (9 * weight.shape[1]) ** 0.5
    for activation, function in zip(ACTIVATIONS, (nn.Identity(), F.relu, F.silu), strict=True):
        for added in (None, summand):
            got = conv(x, weight, bias, added, activation)
            expected = function(exact if added is None else exact + added.double())
            torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=atol)
            assert got.dtype == torch.bfloat16
            assert got.is_contiguous(memory_format=torch.channels_last)
    expected = ops.winograd_filters_grad(summand.float(), x.float())
    assert ops.winograd_filters_grad(summand, x).equal(expected)


@isas
@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize(("channels", "side"), [(16, 64), (256, 24), (256, 20), (512, 12)])
def test_error_in_bfloat16_is_that_of_rounding(channels: int, side: int, isa: str) -> None:
    x, weight = noise(1, channels, side, side).relu(), noise(channels, channels, 3, 3, seed=1)
    x, weight = x.bfloat16(), weight.bfloat16()
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    rounded = exact.bfloat16()
    assert (conv(x, weight) - exact).norm() < 1.01 * (rounded - exact).norm()


@isas
@pytest.mark.usefixtures("instruction_set")
def test_bfloat16_rounds_as_torch(isa: str) -> None:
    """Ties, numbers around them, subnormal and largest numbers, infinity and NaNs of all bits."""
    bits = torch.tensor([0x3F80, 0x3F81, 0x0001, 0x0080, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF]) << 16
    bits = bits[:, None] + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bias = bits.flatten().int().view(torch.float32)
    bias = torch.cat([bias, -bias])
    x = torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)
    got = conv(x, torch.zeros(len(bias), 1, 3, 3).bfloat16(), bias)[0, :, 1, 2]
    torch.testing.assert_close(got, bias.bfloat16(), rtol=0, atol=0, equal_nan=True)


def laid_out(weight: Tensor) -> Tensor:
    """The definition of the layout."""
    outputs, channels = weight.shape[:2]
    panels = -(-outputs // 32)
    padded = torch.cat([weight, weight.new_zeros(panels * 32 - outputs, channels, 3, 3)])
    return padded.view(panels, 32, channels, 9).permute(0, 2, 3, 1).contiguous()


@isas
@named
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("instruction_set")
def test_layout(name: str, dtype: torch.dtype, isa: str) -> None:
    """Of weights in either layout, with factors and without; one with NaN keeps its place."""
    _, weight = samples()[name]
    weight = weight.to(dtype)
    scale = noise(1, 1, 1, len(weight))[0, 0, 0]
    scale[-1] = float("nan")
    scaled = (weight.float() * scale[:, None, None, None]).to(dtype)
    for own in (weight, weight.contiguous()):
        assert winograd_filters(own).equal(laid_out(weight.contiguous()))
        got = winograd_filters(own, scale)
        torch.testing.assert_close(
            got, laid_out(scaled.contiguous()), rtol=0, atol=0, equal_nan=True
        )
    turned = weight.transpose(0, 1).flip(2, 3).contiguous()
    assert winograd_filters_turned(weight).equal(laid_out(turned))


@isas
@pytest.mark.usefixtures("instruction_set")
def test_hand_worked(isa: str) -> None:
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    shifts = torch.zeros(9, 1, 3, 3)
    shifts.view(9, 9).fill_diagonal_(1)  # each filter selects one neighbour
    out = conv(x, shifts)
    assert out[0, 4].numpy() == pytest.approx(x[0, 0].numpy(), abs=1e-5)
    at_top_left = torch.tensor([[0.0, 0, 0], [0, 1, 2], [0, 4, 5]])
    torch.testing.assert_close(out[0, 0], at_top_left, rtol=0, atol=1e-5)
    at_right = torch.tensor([[2.0, 3, 0], [5, 6, 0], [8, 9, 0]])
    torch.testing.assert_close(out[0, 5], at_right, rtol=0, atol=1e-5)
    mean = conv(x, torch.ones(1, 1, 3, 3), torch.tensor([-45.0]))
    assert abs(mean[0, 0, 1, 1]) < 1e-4


@isas
@pytest.mark.usefixtures("instruction_set")
def test_silu_of_every_size(isa: str) -> None:
    sizes = torch.tensor([0.0, 1e-30, 1e-8, 1e-3, 0.5, 1, 2, 5, 10, 20, 50, 80, 200, 1e30])
    bias = torch.cat([sizes, -sizes])
    x, weight = torch.zeros(1, 1, 4, 4), torch.zeros(len(bias), 1, 3, 3)
    got = conv(x, weight, bias, activation="swish")[0, :, 1, 2].double()
    expected = F.silu(bias.double())
    torch.testing.assert_close(got, expected, rtol=4e-7, atol=1e-34)
    assert conv(x, weight, bias * float("nan"), activation="swish").isnan().all()


@isas
@pytest.mark.usefixtures("instruction_set")
def test_relu_keeps_nan(isa: str) -> None:
    x, bias = torch.zeros(1, 1, 4, 4), torch.tensor([float("nan")])
    assert conv(x, torch.zeros(1, 1, 3, 3), bias, activation="relu").isnan().all()


@isas
@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize(("channels", "side"), [(16, 64), (64, 48), (256, 24), (512, 12)])
def test_error_is_about_a_direct_convolutions(channels: int, side: int, isa: str) -> None:
    """For maps as networks have them: after a ReLU, whose mean is not 0."""
    x, weight = noise(1, channels, side, side).relu(), noise(channels, channels, 3, 3, seed=1)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct = F.conv2d(x, weight, padding=1)
    assert (conv(x, weight) - exact).norm() < 4 * (direct - exact).norm()


@pytest.mark.parametrize("side", [8, 64])
def test_error_of_the_filters_gradient(side: int) -> None:
    x, weight = noise(2, 32, side, side).relu(), torch.zeros(32, 32, 3, 3)
    grad = noise(2, 32, side, side, seed=1)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = weight.to(dtype, copy=True).requires_grad_()
        F.conv2d(x.to(dtype), leaf, padding=1).backward(grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    exact, direct = gradient(torch.float64), gradient(torch.float32)
    error = ops.winograd_filters_grad(grad, x) - exact
    assert error.abs().mean() < 8 * (direct - exact).abs().mean()
    assert error.norm() < 2e-6 * exact.norm()


def test_no_channels_and_no_filters() -> None:
    x, bias = noise(2, 0, 5, 4), torch.tensor([1.5])
    weight = torch.empty(1, 0, 3, 3)
    assert conv(x, weight, bias).equal(torch.full((2, 1, 5, 4), 1.5))
    assert input_grad(noise(2, 1, 5, 4), weight).shape == x.shape
    assert ops.winograd_filters_grad(noise(2, 1, 5, 4), x).shape == weight.shape
    assert conv(noise(2, 3, 5, 4), torch.empty(0, 3, 3, 3)).shape == (2, 0, 5, 4)


def test_threads_do_not_matter() -> None:
    x, weight, grad = noise(2, 40, 41, 37), noise(50, 40, 3, 3), noise(2, 50, 41, 37, seed=1)
    small, wide = noise(1, 40, 8, 6), noise(300, 40, 3, 3)  # threads share a block of tiles

    def results() -> list[Tensor]:
        grads = input_grad(grad, weight), ops.winograd_filters_grad(grad, x)
        return [conv(x, weight), conv(small, wide), *grads]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        for n in (2, 3, 5):
            torch.set_num_threads(n)
            assert all(a.equal(b) for a, b in zip(results(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        conv(noise(1, 6, 5, 7), noise(8, 6, 3, 3), activation="gelu")


def test_an_output_depends_on_its_tiles_alone() -> None:
    weight = noise(8, 8, 3, 3)
    x = noise(1, 8, 12, 12)
    expected = conv(x, weight)
    x[0, 3, 5, 5] = float("nan")
    got = conv(x, weight)
    assert got[0, :, 4:7, 4:7].isnan().all()
    assert got[:, :, :4].equal(expected[:, :, :4])
    assert got[:, :, 8:].equal(expected[:, :, 8:])


def convolve(x: Tensor, filters: Tensor, channels: int = 8, **others) -> Tensor:
    arguments = {"bias": None, "summand": None, "activation": 0, **others}
    return ops.winograd_conv(x, filters, channels=channels, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w, f: ops.winograd_filters(w[:, :, :2], None), r"weight: expected .*3, 3"),
        (lambda x, w, f: ops.winograd_filters(w.double(), None), "weight: expected Float or"),
        (lambda x, w, f: ops.winograd_filters(w, w[:, 0, 0, 0].double()), "scale: expected Float"),
        (lambda x, w, f: ops.winograd_filters(w, w[1:, 0, 0, 0]), r"scale: expected Float \(O,"),
        (lambda x, w, f: convolve(x[0], f), "input: expected Float"),
        (lambda x, w, f: convolve(x.double(), f), "input: expected Float"),
        (lambda x, w, f: convolve(x[:, 1:], f), "filters: expected the result"),
        (lambda x, w, f: convolve(x, f, 40), "filters: expected the result"),
        (lambda x, w, f: convolve(x.half(), f), "input: expected Float or BFloat16"),
        (lambda x, w, f: convolve(x, f.bfloat16()), "filters: expected the result"),
        (lambda x, w, f: convolve(x, f, summand=x.bfloat16()), "summand: expected the dtype"),
        (lambda x, w, f: convolve(x, f, bias=x[0, 0, 0]), "bias: expected Float"),
        (lambda x, w, f: convolve(x, f, summand=x), "summand: expected the channels"),
        (lambda x, w, f: convolve(x, f, summand=x[:, :, 1:]), "summand: expected the B"),
        (lambda x, w, f: convolve(x, f, activation=3), "activation: expected 0, 1 or 2, got 3"),
        (lambda x, w, f: ops.winograd_filters_grad(x, x.double()), "input: expected Float"),
        (lambda x, w, f: ops.winograd_filters_grad(x, x.bfloat16()), "grad: expected the dtype"),
        (lambda x, w, f: ops.winograd_filters_grad(x, x[:, :, 1:]), "grad: expected the B"),
    ],
)
def test_bad_input(call, message: str) -> None:
    weight = noise(8, 6, 3, 3)
    with pytest.raises(RuntimeError, match=message):
        call(noise(2, 6, 5, 7), weight, ops.winograd_filters(weight, None))


@pytest.mark.parametrize("name", ["5 x 4", "33 -> 36", "many channels", "NCHW", "strided"])
def test_opcheck(name: str) -> None:
    x, weight = samples()[name]
    grad = noise(len(x), len(weight), *x.shape[2:])
    bias = noise(1, 1, 1, len(weight))[0, 0, 0]
    filters = winograd_filters(weight)
    torch.library.opcheck(ops.winograd_filters_turned, (weight,))
    for scale in (None, torch.rand(len(weight))):
        torch.library.opcheck(ops.winograd_filters, (weight, scale))
    for others in ((None, None, len(weight), 0), (bias, grad, len(weight), 2)):
        torch.library.opcheck(ops.winograd_conv, (x, filters, *others))
    torch.library.opcheck(ops.winograd_filters, (weight.bfloat16(), None))
    halves = x.bfloat16(), winograd_filters(weight.bfloat16())
    torch.library.opcheck(ops.winograd_conv, (*halves, None, None, len(weight), 1))
    torch.library.opcheck(ops.winograd_filters_grad, (grad, x))


def test_fake_results_are_laid_out_as_the_ops() -> None:
    x, weight = noise(2, 6, 5, 8), noise(40, 6, 3, 3)

    def results(x: Tensor, weight: Tensor) -> list[Tensor]:
        filters = winograd_filters(weight)
        output = winograd_conv(x, filters, None, None, 40, ACTIVATIONS[0])
        halves = winograd_filters(weight.bfloat16())
        halved = winograd_conv(x.bfloat16(), halves, None, None, 40, ACTIVATIONS[0])
        grad = winograd_filters_grad(output, x)
        return [filters, winograd_filters_turned(weight), output, halves, halved, grad]

    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = results(torch.empty_like(x), torch.empty_like(weight))
    for ours, real in zip(fake, results(x, weight), strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (real.shape, real.stride(), real.dtype)
