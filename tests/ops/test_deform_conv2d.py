# SPDX-License-Identifier: BSD-3-Clause
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdet.ops import deform_conv2d
from tests import reference

INF, NAN = float("inf"), float("nan")
HALF_TYPES = [torch.float16, torch.bfloat16]


class Sample(NamedTuple):
    """The arguments, in their order."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    mask: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [x for x in self if isinstance(x, Tensor)]

    def each(self, change) -> "Sample":
        """With every tensor changed."""
        return Sample(*(change(x) if isinstance(x, Tensor) else x for x in self))

    def to(self, *arguments) -> "Sample":
        return self.each(lambda x: x.to(*arguments))

    def leaves(self) -> "Sample":
        return self.each(lambda x: x.detach().clone().requires_grad_())

    def gradients(self, output: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, self.tensors, grad)


def random_sample(
    images: int = 2,
    channels: int = 6,
    outputs: int = 4,
    size: tuple[int, int] = (7, 9),
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    offset_groups: int = 1,
    bias: bool = True,
    mask: bool = True,
    spread: float = 2.0,
    seed: int = 0,
) -> Sample:
    """Float64. Many samples are between pixels, some on the border and some outside."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    places = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    points = offset_groups * kernel[0] * kernel[1]
    return Sample(
        draw(images, channels, *size),
        spread * draw(images, 2 * points, *places),
        draw(outputs, channels // groups, *kernel) / (channels * points) ** 0.5,
        draw(outputs) if bias else None,
        stride,
        padding,
        dilation,
        draw(images, points, *places).sigmoid() if mask else None,
    )


def samples() -> dict[str, Sample]:
    table = {
        "no images": random_sample(images=0),
        "no outputs": random_sample(outputs=0),
        "one of each": random_sample(1, 1, 1, (1, 1), (1, 1), padding=(0, 0)),
        "v1": random_sample(mask=False),
        "no bias": random_sample(bias=False),
        "no bias and no mask": random_sample(bias=False, mask=False),
        "one row": random_sample(size=(1, 12)),
        "one column": random_sample(size=(12, 1)),
        "one position": random_sample(size=(3, 3), padding=(0, 0)),
        "a kernel larger than the input": random_sample(size=(2, 3), kernel=(5, 4), padding=(3, 2)),
        "1 x 1 taps": random_sample(kernel=(1, 1), padding=(0, 0)),
        "2 x 5 taps": random_sample(kernel=(2, 5)),
        "stride": random_sample(stride=(2, 3)),
        "dilation": random_sample(dilation=(2, 3), padding=(2, 4)),
        "all": random_sample(
            3, 12, 8, (11, 8), (3, 2), (2, 1), (0, 3), (1, 2), groups=2, offset_groups=3
        ),
        "groups": random_sample(groups=2),
        "depthwise": random_sample(channels=5, outputs=10, groups=5),
        "offset groups": random_sample(offset_groups=3),
        "an offset group for each channel": random_sample(offset_groups=6),
        "more groups than offset groups": random_sample(groups=6, outputs=6, offset_groups=2),
        "many images": random_sample(images=40, size=(3, 4), padding=(0, 0)),
        "many positions": random_sample(size=(40, 50), channels=3, outputs=2),
        "far offsets": random_sample(spread=20),
        "groups of 40 channels": random_sample(
            1, 80, 66, (5, 4), groups=2, offset_groups=4, spread=1
        ),
    }
    for n in (1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 130):
        table[f"{n} channels"] = random_sample(channels=n, outputs=5)
        table[f"{n} outputs"] = random_sample(channels=5, outputs=n)
    for n in (1, 5, 11, 12, 13, 16, 17, 25):  # positions
        table[f"{n} positions"] = random_sample(1, size=(1, n))
    return table


SAMPLES = samples()


def output_grad(found: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(found.shape, generator=generator, dtype=torch.float64).to(found)


def results(sample: Sample, run: Any = deform_conv2d, grad: Tensor | None = None) -> list[Tensor]:
    """The output, then the gradients of all tensors."""
    leaves = sample.leaves()
    found = run(*leaves)
    grad = output_grad(found) if grad is None else grad.to(found)
    return [found.detach(), *leaves.gradients(found, grad)]


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        scale = max(b.abs().max().item(), 1.0) if b.numel() else 1.0
        a, b = a.cpu().double(), b.cpu().double()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def test_hand_worked(device):
    # One tap that multiplies by 10 and adds 1. At (0.5, 0.5) between all four pixels; half over the
    # left border; on a pixel, with the mask 4; and outside.
    input = torch.tensor([[1.0, 2], [3, 6]], device=device).reshape(1, 1, 2, 2)
    y = torch.tensor([[0.5, 0], [0, 1]], device=device)
    x = torch.tensor([[0.5, -1.5], [0, 7]], device=device)
    found = deform_conv2d(
        input,
        torch.stack([y, x])[None],
        torch.full((1, 1, 1, 1), 10.0, device=device),
        torch.ones(1, device=device),
        mask=torch.tensor([[1.0, 1], [4, 1]], device=device).reshape(1, 1, 2, 2),
    )
    assert found.flatten().tolist() == [31.0, 6.0, 121.0, 1.0]


@pytest.fixture(params=[False, True], ids=["any order", "deterministic"])
def deterministic(request) -> Iterator[None]:
    """Torch's setting: the CUDA kernels have two ways to sum the gradient of the input."""
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", SAMPLES)
def test_equals_the_reference_in_float64(name, device):
    sample = SAMPLES[name]
    found, *gradients = results(sample.to(device))
    assert found.is_contiguous()
    assert_close([found, *gradients], results(sample, reference.deform_conv2d), 1e-10)


@pytest.mark.parametrize("name", SAMPLES)
def test_equals_the_reference_in_float32(name, device):
    sample = SAMPLES[name].to(torch.float32)
    expected = results(sample.to(torch.float64), reference.deform_conv2d)
    assert_close(results(sample.to(device)), expected, 2e-5)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("name", ["all", "17 channels", "v1", "many images"])
@pytest.mark.parametrize("half", ["all tensors", "the input"])
def test_half_types_are_summed_in_float32(half, name, dtype, device):
    own = SAMPLES[name].to(dtype).to(device)
    wide = own.to(torch.float32)
    if half == "the input":
        own = wide._replace(input=own.input)
    got = results(own)
    want = results(wide, grad=output_grad(got[0]))
    for a, b, like in zip(got, want, [own.input, *own.tensors], strict=True):
        assert a.dtype == like.dtype
        last_digit = max(torch.finfo(a.dtype).eps, 1e-5)
        torch.testing.assert_close(a, b.to(a.dtype), rtol=last_digit, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("no outputs",)])
def test_equals_torchvision(name):
    ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)
    sample = SAMPLES[name]
    assert_close(results(sample), results(sample, ops.deform_conv2d), 1e-10)


def test_without_offsets_it_is_a_convolution(device):
    # Many samples lie on the border, where the derivative has two sides.
    ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)
    sample = random_sample(groups=2, stride=(2, 1), padding=(2, 1), spread=0, mask=False)
    found = deform_conv2d(*sample.to(device)).cpu()
    expected = nn.functional.conv2d(
        sample.input, sample.weight, sample.bias, (2, 1), (2, 1), groups=2
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert_close(results(sample.to(device)), results(sample, ops.deform_conv2d), 1e-10)


@pytest.mark.usefixtures("deterministic")
def test_only_what_is_sampled_is_read(device):
    # 6 x 10 pixels. Of each row's ten samples three lie in the block [2, 4) x [3, 6), four are
    # outside, and three are nowhere.
    input = torch.full((1, 5, 6, 10), INF, dtype=torch.float64)
    input[:, :, 2:4, 3:6] = torch.rand(1, 5, 2, 3, dtype=torch.float64)
    y = torch.tensor([2.0, 2.5, 2.99, 2, 2, 1e38, -1e38, NAN, 2, 2]).double()
    x = torch.tensor([3.0, 3.5, 4.99, -1.5, 10.5, 4, 4, 4, INF, NAN]).double()
    row, column = torch.meshgrid(torch.arange(6), torch.arange(10), indexing="ij")
    sample = random_sample(1, 5, 3, (6, 10), (1, 1), padding=(0, 0), bias=False, mask=False)
    sample = sample._replace(input=input, offset=torch.stack([y - row, x - column])[None])
    found, of_input, of_offset, of_weight = results(sample.to(device))
    for tensor in (found, of_input, of_offset, of_weight):
        assert tensor.isfinite().all()
    assert found[..., :3].all()
    assert not found[..., 3:].any()
    assert not of_offset[..., 3:].any()
    of_input[:, :, 2:4, 3:6] = 0
    assert not of_input.any()


@pytest.mark.parametrize("num_threads", [2, 3, 5])
@pytest.mark.parametrize("name", ["all", "many images", "many positions", "130 channels"])
def test_result_does_not_depend_on_the_thread_count(name, num_threads):
    sample = SAMPLES[name].to(torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(sample)
        torch.set_num_threads(num_threads)
        got = results(sample)
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["many positions", "130 channels", "all", "far offsets"])
def test_backward_is_deterministic_on_request(name, device):
    sample = SAMPLES[name].to(torch.float32).to(device)
    usual = results(sample)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = results(sample), results(sample)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert_close(first, usual, 1e-5)


@cache
def many_columns() -> tuple[Sample, list[Tensor]]:
    """143 MB of columns, and the results of torchvision."""
    ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)
    sample = random_sample(2, 1024, 2, (20, 35), (5, 5), padding=(2, 2), bias=False)
    sample = sample.to(torch.float32)
    return sample, results(sample, ops.deform_conv2d)


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic")
def test_more_columns_than_are_in_memory_at_a_time(device):
    # 128 MB are made at a time: the second block begins within an image.
    sample, by_torchvision = many_columns()
    for got, expected in zip(results(sample.to(device)), by_torchvision, strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["all", "17 channels", "one column"])
def test_channels_last(name, dtype, device):
    sample = SAMPLES[name].to(dtype).to(device)
    layout = torch.channels_last
    moved = sample._replace(input=sample.input.contiguous(memory_format=layout))
    leaves, plain = moved.leaves(), sample.leaves()
    found, expected = deform_conv2d(*leaves), deform_conv2d(*plain)
    assert found.equal(expected)
    assert found.is_contiguous(memory_format=layout)
    grad = output_grad(expected)
    got = leaves.gradients(found, grad.contiguous(memory_format=layout))
    assert got[0].is_contiguous(memory_format=layout)
    for a, b in zip(got, plain.gradients(expected, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", ["transposed", "every second", "expanded"])
def test_arguments_of_any_strides(layout, device):
    sample = random_sample(groups=2, offset_groups=3).to(device)

    def strided(tensor: Tensor) -> Tensor:
        if layout == "transposed":
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "expanded" and tensor.dim() == 4:
            return tensor[:1].expand_as(tensor)
        return torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]

    moved = sample.each(strided)
    plain = moved.each(lambda x: x.contiguous()).leaves()
    expected = deform_conv2d(*plain)
    grad = strided(output_grad(expected))
    moved = moved.each(lambda x: x.detach().requires_grad_())
    found = deform_conv2d(*moved)
    assert found.equal(expected)
    got = moved.gradients(found, grad)
    for a, b in zip(got, plain.gradients(expected, grad.contiguous()), strict=True):
        torch.testing.assert_close(a, b)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 40), st.integers(1, 3))
def test_backward_is_the_transpose_of_forward(seed, outputs, channels, kernel):
    sample = random_sample(
        1, channels, outputs, (4, 5), (kernel, kernel), bias=False, seed=seed
    ).leaves()
    found = deform_conv2d(*sample)
    grad = output_grad(found)
    of_input, _, of_weight, of_mask = sample.gradients(found, grad)
    product = (found * grad).sum()
    for tensor, its in (
        (sample.input, of_input),
        (sample.weight, of_weight),
        (sample.mask, of_mask),
    ):
        torch.testing.assert_close((tensor * its).sum(), product, atol=1e-9, rtol=1e-9)


@given(st.integers(0, 10**6))
def test_order_of_images_and_outputs(seed):
    sample = random_sample(images=3, outputs=5, seed=seed)
    images, outputs = torch.randperm(3), torch.randperm(5)
    assert sample.bias is not None
    assert sample.mask is not None
    moved = sample._replace(
        input=sample.input[images],
        offset=sample.offset[images],
        mask=sample.mask[images],
        weight=sample.weight[outputs],
        bias=sample.bias[outputs],
    )
    assert deform_conv2d(*moved).equal(deform_conv2d(*sample)[images][:, outputs])


@pytest.mark.parametrize("mask", [False, True])
def test_gradcheck(mask, device):
    sample = random_sample(
        1, 4, 2, (4, 3), (2, 2), groups=2, offset_groups=2, bias=mask, mask=mask, seed=3
    )
    leaves = sample.to(device).leaves()

    def run(*tensors: Tensor) -> Tensor:
        left = iter(tensors)
        return deform_conv2d(*(next(left) if isinstance(x, Tensor) else x for x in leaves))

    torch.autograd.gradcheck(run, leaves.tensors, nondet_tol=1e-12)


def test_second_derivatives_are_refused():
    sample = random_sample().leaves()
    found = deform_conv2d(*sample)
    (grad,) = torch.autograd.grad(found.square().sum(), sample.input, create_graph=True)
    with pytest.raises(NotImplementedError, match="deform_conv2d_backward: no second derivative"):
        grad.sum().backward()


def operator_arguments(sample: Sample) -> tuple[Any, ...]:
    steps = [list(pair) for pair in (sample.stride, sample.padding, sample.dilation)]
    return sample.input, sample.offset, sample.weight, sample.bias, sample.mask, *steps


@pytest.mark.parametrize("name", ["all", "no bias and no mask", "v1"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(name, channels_last, device):
    sample = SAMPLES[name].to(torch.float32).to(device)
    if channels_last:
        sample = sample._replace(input=sample.input.contiguous(memory_format=torch.channels_last))
    arguments = operator_arguments(sample.leaves())
    torch.library.opcheck(torch.ops.fastdet.deform_conv2d, arguments)


def test_one_number_is_two(device):
    sample = random_sample(stride=(2, 2), padding=(3, 3), dilation=(2, 2)).to(device)
    found = deform_conv2d(*sample[:4], 2, 3, 2, sample.mask)
    assert found.equal(deform_conv2d(*sample))
    assert found.equal(deform_conv2d(*sample[:4], [2, 2], [3, 3], [2, 2], sample.mask))


def test_under_autocast(device):
    torch.manual_seed(0)
    sample = random_sample(channels=8).to(torch.float32).to(device)
    stem = nn.Conv2d(3, 8, 3, padding=1).to(device)
    pixels = torch.rand(2, 3, 7, 9, device=device)
    weight = sample.weight.requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        input = stem(pixels)
        found = deform_conv2d(input, *sample[1:])
    assert input.dtype == found.dtype == torch.bfloat16
    expected = deform_conv2d(input.float(), *sample[1:])
    assert found.equal(expected.bfloat16())
    found.float().sum().backward()
    assert stem.weight.grad is not None
    assert weight.grad is not None
    assert stem.weight.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def loss(*tensors: Tensor) -> Tensor:
        input, offset, weight, bias, mask = tensors
        found = deform_conv2d(input * 2, offset, weight, bias, padding=1, mask=mask)
        return found.square().sum()

    tensors = random_sample().to(torch.float32).to(device).leaves().tensors
    expected = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    got = torch.autograd.grad(compiled(*tensors), tensors)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


BAD = {
    "input: expected floating (B, C, H, W)": {"input": torch.zeros(6, 7, 9)},
    "input: expected floating (B, C, H, W) with C above": {"input": torch.zeros(2, 0, 7, 9)},
    "got Long (2, 6, 7, 9)": {"input": torch.zeros(2, 6, 7, 9, dtype=torch.int64)},
    "weight: expected floating (O, C / groups, kernel height": {"weight": torch.zeros(4, 6, 3)},
    "the C of input, 6, and O multiples of groups": {"weight": torch.zeros(4, 4, 3, 3)},
    "O multiples of groups, got Float (3, 3, 3, 3)": {"weight": torch.zeros(3, 3, 3, 3)},
    "got Float (4, 6, 0, 3)": {"weight": torch.zeros(4, 6, 0, 3)},
    "offset: expected floating (2, 18 * offset groups, 7, 9) with the C": {
        "offset": torch.zeros(2, 17, 7, 9)
    },
    "a multiple of offset groups, got Float (2, 18, 7, 8)": {"offset": torch.zeros(2, 18, 7, 8)},
    "6, a multiple of offset groups, got Float (2, 72, 7, 9)": {"offset": torch.zeros(2, 72, 7, 9)},
    "mask: expected floating (2, 9 * offset groups, 7, 9) with 1": {
        "mask": torch.zeros(2, 18, 7, 9)
    },
    "bias: expected floating (4,), the O of weight, got Float (5)": {"bias": torch.zeros(5)},
    "stride: expected two numbers in [1, 2**20], got [1, 0]": {"stride": (1, 0)},
    "padding: expected two numbers in [0, 2**20], got [-1, 1]": {"padding": (-1, 1)},
    "dilation: expected two numbers in [1, 2**20], got [4194304, 1]": {"dilation": (2**22, 1)},
    "of at least the extent of the kernel, got 7 x 9 for a kernel of 3 x 3": {"dilation": (9, 1)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message, device):
    sample = random_sample().to(torch.float32)._replace(**BAD[message]).to(device)
    with pytest.raises(RuntimeError, match=r"fastdet::deform_conv2d: .*" + re.escape(message)):
        deform_conv2d(*sample)


def test_steps_that_are_no_pairs_are_named():
    sample = random_sample()
    with pytest.raises(ValueError, match=r"stride: expected one number, or two .* got \(1, 2, 3\)"):
        deform_conv2d(*sample[:4], stride=(1, 2, 3))
    with pytest.raises(ValueError, match=r"dilation: expected one number, or two .* got \[\]"):
        deform_conv2d(*sample[:4], dilation=[])


@pytest.mark.cuda
def test_devices_must_agree():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    sample = random_sample()
    with pytest.raises(RuntimeError, match=r"offset: expected the device of the first"):
        deform_conv2d(sample.input, sample.offset.cuda(), *sample[2:])
