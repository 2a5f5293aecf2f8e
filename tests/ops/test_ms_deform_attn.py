# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdet.ops import ms_deform_attn
from tests import reference

INF, NAN = float("inf"), float("nan")
SHAPES = [(8, 12), (4, 6), (2, 3)]
HALF_TYPES = [torch.float16, torch.bfloat16]


class Sample(NamedTuple):
    value: Tensor
    shapes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.locations, self.weights

    def moved(self, *arguments) -> "Sample":
        value, locations, weights = (t.to(*arguments) for t in self.tensors)
        return Sample(value, self.shapes, locations, weights)

    def leaves(self) -> "Sample":
        value, locations, weights = (t.detach().clone().requires_grad_() for t in self.tensors)
        return Sample(value, self.shapes, locations, weights)

    def gradients(self, output: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, self.tensors, grad)


def random_sample(
    images: int = 2,
    queries: int = 5,
    heads: int = 3,
    channels: int = 8,
    points: int = 4,
    shapes: list[tuple[int, int]] = SHAPES,
    seed: int = 0,
) -> Sample:
    """Float64. Some points are on the border of their level and some are outside it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    pixels = sum(height * width for height, width in shapes)
    rows = images, queries, heads, len(shapes), points
    return Sample(
        draw(images, pixels, heads, channels) - 0.5,
        shapes,
        draw(*rows, 2) * 1.4 - 0.2,
        draw(*rows),
    )


def samples() -> dict[str, Sample]:
    table = {
        "no images": random_sample(images=0),
        "no queries": random_sample(queries=0),
        "no heads": random_sample(heads=0),
        "no channels": random_sample(channels=0),
        "no points": random_sample(points=0),
        "one of each": random_sample(1, 1, 1, 1, 1, [(1, 1)]),
        "one column": random_sample(shapes=[(5, 1)]),
        "one row": random_sample(shapes=[(1, 5), (1, 1)]),
        "eight levels": random_sample(shapes=[(n, 9 - n) for n in range(1, 9)]),
        "many queries": random_sample(queries=300, heads=2),
        "many heads": random_sample(heads=19, queries=3),
    }
    for channels in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 130, 260):
        table[f"{channels} channels"] = random_sample(channels=channels, queries=9)
    for points in (1, 5, 6, 15, 33):  # 15 and more points of a head
        table[f"{points} points"] = random_sample(points=points)
    return table


SAMPLES = samples()


def output_grad(sample: Sample) -> Tensor:
    value, _, locations, _ = sample
    shape = *locations.shape[:2], value.size(2) * value.size(3)
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_centre_of_a_pixel_is_its_value(device):
    value = torch.arange(6.0, device=device).reshape(1, 6, 1, 1)  # 2 x 3 pixels
    x, y = torch.meshgrid(torch.arange(3), torch.arange(2), indexing="xy")
    centres = torch.stack([(x + 0.5) / 3, (y + 0.5) / 2], 2).reshape(1, 6, 1, 1, 1, 2).to(device)
    ones = torch.ones(1, 6, 1, 1, 1, device=device)
    torch.testing.assert_close(
        ms_deform_attn(value, [(2, 3)], centres, ones).flatten(), value.flatten()
    )


def test_hand_worked(device):
    # 2 x 2 pixels. Between all four; halfway over the left border; on the corner, with the weight
    # 4; and outside.
    value = torch.tensor([1.0, 2, 3, 6], device=device).reshape(1, 4, 1, 1)
    points = torch.tensor([[0.5, 0.5], [0, 0.25], [1, 1], [1.25, 0.5]], device=device)
    weights = torch.tensor([1.0, 1, 4, 1], device=device)
    found = ms_deform_attn(
        value, [(2, 2)], points.reshape(1, 4, 1, 1, 1, 2), weights.reshape(1, 4, 1, 1, 1)
    )
    assert found.flatten().tolist() == [3.0, 0.5, 6.0, 0.0]


@pytest.fixture(params=[False, True], ids=["any order", "deterministic"])
def deterministic(request) -> Iterator[None]:
    """Torch's setting: the CUDA kernels have two ways to sum the value's gradient."""
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", SAMPLES)
def test_equals_the_reference_in_float64(name, device):
    exact = SAMPLES[name].leaves()
    ours = exact.moved(device).leaves()
    found = ms_deform_attn(*ours)
    expected = reference.ms_deform_attn(*exact)
    assert found.is_contiguous()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-10)
    grad = output_grad(exact)
    for got, want in zip(
        ours.gradients(found, grad.to(device)), exact.gradients(expected, grad), strict=True
    ):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SAMPLES)
def test_equals_the_reference_in_float32(name, device):
    ours = SAMPLES[name].moved(torch.float32).moved(device).leaves()
    exact = ours.moved("cpu").moved(torch.float64).leaves()
    found = ms_deform_attn(*ours)
    expected = reference.ms_deform_attn(*exact)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    grad = output_grad(exact)
    got = ours.gradients(found, grad.to(found))
    for a, b in zip(got, exact.gradients(expected, grad), strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("channels", [3, 8, 20, 32])
@pytest.mark.parametrize("half_points", [False, True])
def test_half_types_are_summed_in_float32(half_points, channels, dtype, device):
    half = random_sample(channels=channels).moved(dtype).moved(device)
    wide = half.moved(torch.float32)
    if not half_points:
        half = half._replace(locations=wide.locations, weights=wide.weights)
    half, wide = half.leaves(), wide.leaves()
    found, expected = ms_deform_attn(*half), ms_deform_attn(*wide)
    assert found.dtype == dtype
    assert found.equal(expected.to(dtype))
    grad = output_grad(half).to(found)
    got = half.gradients(found, grad)
    for a, b, leaf in zip(got, wide.gradients(expected, grad.float()), half.tensors, strict=True):
        assert a.dtype == leaf.dtype
        last_digit = max(torch.finfo(a.dtype).eps, 1e-5)
        torch.testing.assert_close(a, b.to(a.dtype), rtol=last_digit, atol=1e-5)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_softmax_of_the_weights(dtype, device):
    sample = random_sample(points=6).moved(dtype).moved(device)
    logits = (8 * sample.weights - 4).detach()
    probabilities = logits.to(torch.float64).flatten(3).softmax(3).view_as(logits).to(logits.dtype)
    fused = sample._replace(weights=logits).leaves()
    apart = sample._replace(weights=logits).leaves()
    of_apart = apart.weights.float() if dtype == torch.bfloat16 else apart.weights
    of_apart = of_apart.flatten(3).softmax(3).view_as(logits)
    found = ms_deform_attn(*fused, softmax=True)
    expected = ms_deform_attn(*apart[:3], of_apart)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        found, ms_deform_attn(*sample[:3], probabilities), rtol=tolerance, atol=tolerance
    )
    grad = output_grad(sample).to(found)
    got, want = fused.gradients(found, grad), apart.gradients(expected, grad)
    assert want[2].any()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=4 * tolerance)


def test_huge_logits_do_not_overflow(device):
    sample = random_sample().moved(torch.float32).moved(device)
    logits = 300 * (sample.weights - 0.5)
    found = ms_deform_attn(*sample[:3], 10 * logits, softmax=True)
    assert found.isfinite().all()


def test_equals_transformers():
    module = pytest.importorskip(
        "transformers.models.deformable_detr.modeling_deformable_detr",
        reason="transformers is not installed: pip install 'fastdet[peers]'",
    )
    theirs, ours = random_sample(queries=40).leaves(), random_sample(queries=40).leaves()
    expected = module.MultiScaleDeformableAttention()(
        theirs.value,
        torch.tensor(SHAPES),
        SHAPES,
        None,
        theirs.locations,
        theirs.weights,
        64,
    )
    found = ms_deform_attn(*ours)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    grad = output_grad(ours)
    for a, b in zip(ours.gradients(found, grad), theirs.gradients(expected, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("deterministic")
def test_only_what_is_sampled_is_read(device):
    # 6 x 8 pixels, of which the points touch the block [2, 4) x [3, 6) and some outside.
    value = torch.full((1, 6, 8, 2, 5), INF)
    value[:, 2:4, 3:6] = torch.rand(2, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([3.5, 4, 5.49, -0.5, 8.5, NAN, INF, -1e30, 4]) / 8
    y = torch.tensor([2.5, 3, 3.49, 3, 3, 3, 3, 3, 1e38]) / 6
    locations = torch.stack([x, y], 1).expand(1, 1, 2, 1, 9, 2)
    leaf = value.reshape(1, 48, 2, 5).to(device).requires_grad_()
    weights = torch.ones(1, 1, 2, 1, 9, device=device, requires_grad=True)
    points = locations.to(device).requires_grad_()
    found = ms_deform_attn(leaf, [(6, 8)], points, weights)
    assert found.isfinite().all()
    grads = torch.autograd.grad(found.sum(), (leaf, points, weights))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0].reshape(6, 8, -1)[:, :3].any()
    assert not grads[1][..., 3:, :].any()
    assert not grads[2][..., 3:].any()


@pytest.mark.parametrize("num_threads", [2, 3, 5])
@pytest.mark.parametrize("images", [1, 2])
def test_result_does_not_depend_on_the_thread_count(images, num_threads):
    sample = random_sample(images, queries=200, heads=5, channels=20).moved(torch.float32)

    def results() -> list[Tensor]:
        leaves = sample.leaves()
        found = ms_deform_attn(*leaves, softmax=True)
        return [found, *leaves.gradients(found, output_grad(sample).float())]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        torch.set_num_threads(num_threads)
        got = results()
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("name", ["many queries", "130 channels", "33 points", "eight levels"])
def test_backward_is_deterministic_on_request(name, softmax, device):
    sample = SAMPLES[name].moved(torch.float32).moved(device)

    def gradients() -> tuple[Tensor, ...]:
        leaves = sample.leaves()
        found = ms_deform_attn(*leaves, softmax=softmax)
        return leaves.gradients(found, found.detach())

    usual = gradients()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, usual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["transposed", "every second", "expanded"])
def test_arguments_of_any_strides(layout, device):
    sample = random_sample().moved(device)

    def strided(tensor: Tensor) -> Tensor:
        if layout == "transposed":
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "expanded":
            return tensor[:1].expand_as(tensor)
        return torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]

    moved = Sample(strided(sample.value), SHAPES, *map(strided, sample[2:]))
    plain = Sample(moved.value.contiguous(), SHAPES, *(t.contiguous() for t in moved[2:])).leaves()
    expected = ms_deform_attn(*plain)
    grad = strided(output_grad(sample).to(device))
    tensors = [t.detach().requires_grad_() for t in moved.tensors]
    found = ms_deform_attn(tensors[0], SHAPES, *tensors[1:])
    assert found.equal(expected)
    got = torch.autograd.grad(found, tensors, grad)
    for a, b in zip(got, plain.gradients(expected, grad.contiguous()), strict=True):
        torch.testing.assert_close(a, b)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 40), st.integers(1, 5))
def test_backward_is_the_transpose_of_forward(seed, queries, channels, points):
    sample = random_sample(1, queries, 2, channels, points, seed=seed).leaves()
    found = ms_deform_attn(*sample)
    grad = output_grad(sample)
    of_value, _, of_weights = sample.gradients(found, grad)
    for tensor, its in ((sample.value, of_value), (sample.weights, of_weights)):
        torch.testing.assert_close((tensor * its).sum(), (found * grad).sum(), atol=1e-9, rtol=1e-9)


@given(st.integers(0, 10**6))
def test_order_of_queries_and_heads(seed):
    sample = random_sample(1, 6, 3, 9, 2, seed=seed)
    found = ms_deform_attn(*sample).unflatten(2, (3, 9))
    queries, heads = torch.randperm(6), torch.randperm(3)
    moved = ms_deform_attn(
        sample.value[:, :, heads],
        SHAPES,
        sample.locations[:, queries][:, :, heads],
        sample.weights[:, queries][:, :, heads],
    )
    assert moved.unflatten(2, (3, 9)).equal(found[:, queries][:, :, heads])


@pytest.mark.parametrize("softmax", [False, True])
def test_gradcheck(softmax, device):
    sample = random_sample(1, 2, 2, 3, 2, [(3, 4), (2, 2)], seed=3).moved(device).leaves()
    torch.autograd.gradcheck(
        lambda v, p, w: ms_deform_attn(v, sample.shapes, p, w, softmax),
        sample.tensors,
        nondet_tol=1e-12,
    )


def test_second_derivatives_are_refused():
    sample = random_sample().leaves()
    found = ms_deform_attn(*sample)
    (grad,) = torch.autograd.grad(found.square().sum(), sample.value, create_graph=True)
    with pytest.raises(NotImplementedError, match="ms_deform_attn_backward: no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("softmax", [False, True])
def test_opcheck(softmax, device):
    sample = random_sample().moved(torch.float32).moved(device).leaves()
    heights, widths = ([shape[i] for shape in SHAPES] for i in range(2))
    arguments = sample.value, heights, widths, sample.locations, sample.weights, softmax
    torch.library.opcheck(torch.ops.fastdet.ms_deform_attn, arguments)


def test_under_autocast(device):
    torch.manual_seed(0)
    sample = random_sample(heads=2).moved(torch.float32).moved(device)
    project = nn.Linear(6, 16).to(device)
    pixels = torch.rand(2, sample.value.size(1), 6, device=device)
    with torch.autocast(device, torch.bfloat16):
        value = project(pixels).unflatten(2, (2, 8))
        found = ms_deform_attn(value, SHAPES, sample.locations, sample.weights)
    assert value.dtype == found.dtype == torch.bfloat16
    expected = ms_deform_attn(value.float(), SHAPES, sample.locations, sample.weights)
    assert found.equal(expected.bfloat16())
    found.float().sum().backward()
    assert project.weight.grad is not None
    assert project.weight.grad.dtype == torch.float32


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def loss(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value * 2, SHAPES, locations, weights, softmax=True).square().sum()

    sample = random_sample().moved(torch.float32).moved(device).leaves()
    expected = torch.autograd.grad(loss(*sample.tensors), sample.tensors)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    got = torch.autograd.grad(compiled(*sample.tensors), sample.tensors)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input_is_named(device):
    value, shapes, locations, weights = random_sample().moved(device)
    with pytest.raises(RuntimeError, match=r"shapes: expected levels of 126 pixels .* got 120"):
        ms_deform_attn(value, shapes[:2], locations[:, :, :, :2], weights[:, :, :, :2])
    with pytest.raises(RuntimeError, match=r"shapes: expected levels of 126 pixels .* got more"):
        ms_deform_attn(value, [*shapes[:2], (3, 3)], locations, weights)
    with pytest.raises(RuntimeError, match=r"shapes: expected levels of 126 pixels .* got more"):
        ms_deform_attn(value, [*shapes[:2], (2**62, 2**62)], locations, weights)
    with pytest.raises(RuntimeError, match=r"expected heights and widths above 0, got 0 x 3"):
        ms_deform_attn(value, [*shapes[:2], (0, 3)], locations, weights)
    with pytest.raises(RuntimeError, match=r"shapes: expected 1 to 8 levels, got 9"):
        ms_deform_attn(value, [(1, 14)] * 9, locations, weights)
    with pytest.raises(RuntimeError, match=r"shapes: expected 1 to 8 levels, got 0"):
        ms_deform_attn(value, [], locations, weights)
    with pytest.raises(ValueError, match=r"shapes: expected a list of \(height, width\), got \[8,"):
        ms_deform_attn(value, [8, 12], locations, weights)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"shapes: expected a list .* got a tensor"):
        ms_deform_attn(value, torch.tensor(shapes), locations, weights)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"value: expected floating \(B, S, H, D\).* got Double"):
        ms_deform_attn(value.flatten(2), shapes, locations, weights)
    with pytest.raises(RuntimeError, match=r"value: expected floating .* got Long"):
        ms_deform_attn(value.long(), shapes, locations, weights)
    with pytest.raises(RuntimeError, match=r"locations: expected floating \(B, Q, H, L, P, 2\)"):
        ms_deform_attn(value, shapes, locations[..., :1], weights)
    with pytest.raises(RuntimeError, match=r"locations: .* the B and H of value and L shapes"):
        ms_deform_attn(value, shapes, locations[:, :, :2], weights)
    with pytest.raises(RuntimeError, match=r"weights: expected floating \(B, Q, H, L, P\)"):
        ms_deform_attn(value, shapes, locations, weights[..., 1:])
    with pytest.raises(RuntimeError, match=r"weights: expected .* got Double \(2, 5, 3, 12\)"):
        ms_deform_attn(value, shapes, locations, weights.flatten(3))


@pytest.mark.cuda
def test_devices_must_agree():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    value, shapes, locations, weights = random_sample()
    with pytest.raises(RuntimeError, match=r"locations: expected the device of the first"):
        ms_deform_attn(value.cuda(), shapes, locations, weights)
