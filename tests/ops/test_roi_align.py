# SPDX-License-Identifier: BSD-3-Clause
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdet.ops import MultiScaleRoIAlign, RoIAlign, multiscale_roi_align, roi_align
from fastdet.ops.roi_align import add_multiscale_grad
from tests import reference
from tests.cuda_emulation import LANE_ORDERS, emulated_kernels

INF, NAN = float("inf"), float("nan")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


class Sample(NamedTuple):
    input: Tensor
    rois: Tensor
    output_size: tuple[int, int] = (3, 2)
    spatial_scale: float = 1.0
    sampling_ratio: int = 2
    aligned: bool = False


def random_features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_rois(n: int, images: int, extent: float, seed: int = 0) -> Tensor:
    """RoIs of all sizes; many cross the border of the image, a few are outside."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.arange(n) % images
    corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 1.4 * extent
    size = torch.rand(n, 2, generator=generator, dtype=torch.float64) ** 2 * extent
    corner -= 0.3 * extent
    return torch.cat([image[:, None], corner, corner + size], 1)


def samples(device: str) -> dict[str, Sample]:
    ramp = torch.arange(8.0).expand(1, 2, 7, 8)
    noise = random_features(2, 3, 9, 11).float()

    def rois(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)

    table = {
        "hand-worked": Sample(ramp.contiguous(), rois([0, 1, 1, 5, 5]), (2, 2)),
        "expanded": Sample(ramp, rois([0, 1, 1, 5, 5]), (2, 2)),
        "no rois": Sample(noise, rois()),
        "no channels": Sample(noise[:, :0], rois([0, 1, 1, 5, 5])),
        "no images": Sample(noise[:0], rois([0, 1, 1, 5, 5])),
        "one pixel": Sample(noise[:, :, :1, :1], rois([1, -1, -1, 0.5, 0.7])),
        "one column": Sample(noise[:, :, :, :1], rois([1, -1, 1, 2, 5])),
        "zero area": Sample(noise, rois([0, 4, 4, 4, 4], [1, 2, 3, 2, 8])),
        "zero area, aligned": Sample(noise, rois([0, 4, 4, 4, 4]), aligned=True),
        "zero area, aligned, adaptive": Sample(noise, rois([0, 4, 4, 4, 4]), (3, 2), 1.0, 0, True),
        "inverted": Sample(noise, rois([0, 8, 7, 1, 2])),
        "inverted, aligned": Sample(noise, rois([0, 8, 7, 1, 2]), aligned=True),
        # The samples of the first and the last bin are exactly at -1 and at the size.
        "at the border": Sample(noise, rois([0, -2, -2, 12, 10]), (6, 7), 1.0, 1),
        "outside": Sample(noise, rois([0, -9, -9, -2, -2], [1, 12, 10, 20, 20])),
        "other images": Sample(noise, rois([2, 1, 1, 5, 5], [-1, 1, 1, 5, 5], [1, 1, 1, 5, 5])),
        "not finite": Sample(
            noise,
            rois(
                *[[NAN if i == k else x for i, x in enumerate([0, 1, 1, 5, 5])] for k in range(5)],
                [0, 1, 1, INF, 5],
                [0, 1, -INF, 5, 5],
            ),
        ),
        "larger than the map": Sample(noise, rois([0, -3000, -200, 4000, 700]), (2, 3), 1.0, -1),
        "many samples": Sample(noise, rois([1, 2.2, 1.7, 9.1, 8.3]), (3, 2), 1.0, 33),
        "cropped view": Sample(noise[:, 1:, 2:8, 3:9], random_rois(9, 2, 9).float()),
        "strided view": Sample(noise[:, :, ::2, ::2], random_rois(9, 2, 9).float()),
    }
    for channels in (1, 4, 7, 8, 9, 15, 16, 17, 63, 64, 65, 130):
        table[f"{channels} channels"] = Sample(
            random_features(2, channels, 9, 11, seed=channels).float(),
            random_rois(5, 2, 80, seed=channels).float(),
            spatial_scale=0.125,
        )
    # Widths around those of vectors, for rows, for RoIs and for rows of bins.
    for width, bins in [
        (15, 1),
        (16, 7),
        (17, 8),
        (33, 9),
        (64, 16),
        (100, 17),
        (130, 7),
        (150, 3),
    ]:
        x = width / 2
        table[f"{width} wide, {bins} bins"] = Sample(
            random_features(1, 9, 5, width, seed=width).float(),
            rois([0, 0, 0, width, 5], [0, 1, 1, x, 4], [0, x, 2, width + 3, 3], [0, x, 1, x, 2]),
            (2, bins),
            sampling_ratio=0 if bins == 7 else 2,
        )
    # More taps a bin, and more bins, than a CUDA block holds at once.
    long = random_features(1, 8, 3, 700).float()
    table["long bins"] = Sample(long, rois([0, 2, -1, 690, 4], [0, 0, 0, 9, 3]), (2, 7), 1.0, 0)
    table["tall bins"] = Sample(
        long.mT.contiguous(), rois([0, -1, 2, 4, 690], [0, 0, 0, 3, 9]), (7, 2), 1.0, 0
    )
    table["very many rows"] = Sample(noise, rois([0, 1, 1, 9, 8]), (130, 2))
    table["very many columns"] = Sample(noise, rois([1, -3, 2, 30, 5]), (2, 131))
    for ratio in (-1, 1, 2, 3):
        for aligned in (False, True):
            table[f"random, ratio {ratio}, aligned {aligned}"] = Sample(
                noise, random_rois(20, 2, 40).float(), (4, 5), 0.25, ratio, aligned
            )
    return {
        name: sample._replace(input=sample.input.to(device), rois=sample.rois.to(device))
        for name, sample in table.items()
    }


def pyramid(dtype: torch.dtype = torch.float32, channels: int = 3) -> list[Tensor]:
    """The feature maps of an image of 128 x 160 pixels."""
    return [
        random_features(2, channels, int(128 * s), int(160 * s), seed=i).to(dtype)
        for i, s in enumerate(SCALES)
    ]


def pyramid_boxes(n: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    """(2, n, 4) boxes; each level gets some of them."""
    generator = torch.Generator().manual_seed(0)
    side = torch.tensor([20.0, 60.0, 150.0, 300.0, 600.0])[torch.arange(2 * n) % 5]
    size = side[:, None] * (0.7 + 0.6 * torch.rand(2 * n, 2, generator=generator))
    centre = torch.rand(2 * n, 2, generator=generator) * 160
    return torch.cat([centre - size / 2, centre + size / 2], 1).to(dtype).reshape(2, n, 4)


SAMPLES = list(samples("cpu"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SAMPLES)
def test_roi_align_equals_reference(name, layout, device):
    sample = samples(device)[name]
    input = sample.input
    if layout == "channels_last" or ("view" not in name and name != "expanded"):
        input = input.contiguous(memory_format=LAYOUTS[layout])
    input = input.detach().requires_grad_()
    pooled = roi_align(input, *sample[1:])
    exact = sample.input.cpu().double().requires_grad_()
    expected = reference.roi_align(exact, sample.rois.cpu(), *sample[2:])
    assert pooled.shape == expected.shape
    assert pooled.is_contiguous(memory_format=LAYOUTS[layout]) or input.size(1) <= 1
    torch.testing.assert_close(pooled.cpu().double(), expected, rtol=1e-5, atol=2e-5)
    if expected.numel() == 0:
        return
    weight = random_features(*expected.shape, seed=7)
    (expected * weight).sum().backward()
    pooled.backward(weight.to(pooled))
    assert input.grad is not None
    torch.testing.assert_close(input.grad.cpu().double(), exact.grad, rtol=1e-5, atol=1e-4)


def test_hand_worked(device):
    # The value of a pixel is its x: the averages of the bins [1, 3] and [3, 5] are 2 and 4.
    pooled = roi_align(*samples(device)["hand-worked"])
    assert pooled.tolist() == [[[[2.0, 4.0], [2.0, 4.0]]] * 2]
    for name in ("outside", "not finite", "zero area, aligned, adaptive"):
        assert not roi_align(*samples(device)[name]).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [n for n in SAMPLES if n.startswith("random")])
def test_roi_align_equals_torchvision(name, layout, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    sample = samples(device)[name]
    ours = sample.input.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    theirs = sample.input.detach().clone().requires_grad_()
    pooled = roi_align(ours, *sample[1:])
    expected = torchvision.ops.roi_align(theirs, *sample[1:])
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)
    weight = random_features(*expected.shape, seed=7).to(expected)
    pooled.backward(weight)
    expected.backward(weight)
    assert ours.grad is not None
    assert ours.grad.stride() == ours.stride()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_digits_are_lost_far_from_the_origin(layout):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    input = random_features(1, 8, 3, 1500).float().contiguous(memory_format=LAYOUTS[layout])
    rois = random_rois(50, 1, 8).float()
    rois[:, [1, 3]] += 5900
    arguments = (7, 0.25, 2, True)
    exact = torchvision.ops.roi_align(input.double(), rois.double(), *arguments)
    theirs = (torchvision.ops.roi_align(input, rois, *arguments) - exact).abs().max()
    ours = (roi_align(input, rois, *arguments) - exact).abs().max()
    assert ours < 1e-6 < 1e-4 < theirs


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_is_sampled_is_read(layout, channels, device):
    # Whole vectors are loaded. Values beside the samples that are not finite must have no effect.
    input = torch.full((1, channels, 20, 40), INF, device=device)
    input[:, :, 4:9, 6:16] = random_features(channels, 5, 10).float().to(device)
    input = input.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    rois = torch.tensor([[0.0, 6, 4, 15, 8]], device=device)
    pooled = roi_align(input, rois, 7)
    assert pooled.isfinite().all()
    weight = torch.full_like(pooled, INF)
    (grad,) = torch.autograd.grad(pooled, input, weight)
    assert grad.isposinf().any()
    assert not grad.isnan().any()
    assert not grad[:, :, :, 17:].any()


def test_list_of_boxes_and_module(device):
    sample = samples(device)["cropped view"]
    boxes = [sample.rois[sample.rois[:, 0] == b, 1:] for b in range(2)]
    rows = torch.cat([sample.rois[sample.rois[:, 0] == b] for b in range(2)])
    expected = roi_align(sample.input, rows, 3, 0.5, 2, True)
    assert roi_align(sample.input, boxes, (3,), 0.5, 2, True).equal(expected)
    module = RoIAlign(3, 0.5, 2, aligned=True)
    assert module(sample.input, boxes).equal(expected)
    assert (
        repr(module) == "RoIAlign(output_size=3, spatial_scale=0.5, sampling_ratio=2, aligned=True)"
    )


@pytest.mark.parametrize("ratio", [-1, 2, 10**9])
@pytest.mark.parametrize("aligned", [False, True])
def test_a_huge_roi_neither_hangs_nor_overflows(ratio, aligned, device):
    rows = [[0, -x, -x, x, x] for x in (1e5, 1e9, 1e30, 3e38)]
    rows += [[0, 1, 1, x, x] for x in (1e9, 3e38)] + [[0, 3e38, 3e38, -3e38, -3e38]]
    input = torch.ones(1, 2, 5, 6, device=device, requires_grad=True)
    pooled = roi_align(input, torch.tensor(rows, device=device), 2, 0.25, ratio, aligned)
    pooled.sum().backward()
    assert ((pooled >= 0) & (pooled <= 1)).all()
    assert input.grad is not None
    assert input.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("begin", [0, 1, 8])
def test_channels_of_a_view_are_read_and_written_where_they_lie(begin, dtype, device):
    # Starting at channel 0 or 8, loads of 16 bytes are possible; at channel 1 they are not.
    wide = random_features(2, 32, 9, 11).to(device, dtype)
    rois = random_rois(7, 2, 9).to(device)
    results = []
    for layout in LAYOUTS.values():
        leaf = wide.contiguous(memory_format=layout).requires_grad_()
        pooled = roi_align(leaf[:, begin : begin + 16], rois, 3, 1.0, 2)
        (grad,) = torch.autograd.grad(pooled, leaf, wide[:1, :16, :3, :3].expand_as(pooled))
        results.append((pooled, grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_more_rois_than_a_cuda_block_looks_at_in_one_go(device):
    rois = random_rois(1100, 2, 9).to(device)
    input = random_features(2, 2, 9, 11).to(device).requires_grad_()
    pooled = roi_align(input, rois, 2)
    (grad,) = torch.autograd.grad(pooled, input, pooled.detach())
    expected = torch.zeros_like(grad)
    for part in rois.split(550):
        pooled = roi_align(input, part, 2)
        expected += torch.autograd.grad(pooled, input, pooled.detach())[0]
    torch.testing.assert_close(grad, expected)


def crowd(n: int) -> Tensor:
    """RoIs about one object of 9 x 9 features, and a few that cover the map of 20 x 22."""
    rois = torch.tensor([[0.0, 6, 6, 15, 15]]).repeat(n, 1)
    rois[:, 1:] += torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    rois[::8, 1:] = torch.tensor([-1.0, -1, 23, 21])
    return rois


def crowd_gradient(rois: Tensor, channels: int, layout: str, dtype: torch.dtype) -> Tensor:
    input = torch.zeros(1, channels, 20, 22, dtype=dtype, device=rois.device)
    input = input.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    pooled = roi_align(input, rois, 3, 1.0, 2)
    weight = random_features(*pooled.shape, seed=7).to(rois.device, torch.bfloat16)
    (grad,) = torch.autograd.grad(pooled, input, weight.to(dtype))
    return grad


@pytest.mark.parametrize(
    ("channels", "layout", "dtype"),
    [
        (1, "NCHW", torch.float32),
        (7, "channels_last", torch.float32),
        (8, "channels_last", torch.bfloat16),
        (136, "channels_last", torch.float32),
    ],
)
def test_many_rois_on_one_object(channels, layout, dtype, device):
    # CUDA divides a tile of 8 x 8 or 4 x 8 features among blocks if more than 16 RoIs touch it.
    rois = crowd(70)
    weight = random_features(70, channels, 3, 3, seed=7).bfloat16().double()
    exact = torch.zeros(1, channels, 20, 22, dtype=torch.float64, requires_grad=True)
    (reference.roi_align(exact, rois, (3, 3), 1.0, 2, False) * weight).sum().backward()
    assert exact.grad is not None
    got = crowd_gradient(rois.to(device), channels, layout, dtype)
    rtol, atol = (1e-2, 1e-2) if dtype == torch.bfloat16 else (1e-5, 1e-4)
    torch.testing.assert_close(got.cpu(), exact.grad.to(dtype), rtol=rtol, atol=atol)


@pytest.mark.emulation
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_rois_on_one_object_in_every_lane_order(layout):
    results = []
    for order in LANE_ORDERS:
        with emulated_kernels(order):
            results.append(crowd_gradient(crowd(40), 8, layout, torch.float32))
    assert all(result.equal(results[0]) for result in results[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_are_summed_in_float32(dtype, layout, device):
    input = random_features(2, 20, 9, 11).to(device, dtype)
    rois = random_rois(40, 2, 9).float().to(device)
    results = []
    for wide in (False, True):
        features = input.to(torch.float32 if wide else dtype, memory_format=LAYOUTS[layout])
        features = features.detach().requires_grad_()
        pooled = roi_align(features, rois, 3, 1.0, 2)
        weight = random_features(*pooled.shape, seed=7).to(device, dtype)
        pooled.backward(weight.to(pooled.dtype))
        assert features.grad is not None
        results.append((pooled.to(dtype), features.grad.to(dtype)))
    assert results[0][0].dtype == dtype
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])


def test_half_boxes(device):
    sample = samples(device)["cropped view"]
    rois = sample.rois.half()
    assert roi_align(sample.input, rois, 3).equal(roi_align(sample.input, rois.float(), 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("aligned", [False, True])
def test_multiscale_equals_reference(layout, aligned, device):
    features, boxes, counts = pyramid(), pyramid_boxes(), torch.tensor([20, 24])
    ours = [
        f.to(device).contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for f in features
    ]
    exact = [f.detach().double().requires_grad_() for f in features]
    arguments = (3, 2), SCALES, 2
    pooled = multiscale_roi_align(
        ours, boxes.to(device), counts.to(device), *arguments, aligned=aligned
    )
    expected = reference.multiscale_roi_align(exact, boxes, counts, *arguments, aligned)
    torch.testing.assert_close(pooled.cpu().double(), expected, rtol=1e-5, atol=1e-4)
    assert pooled.flatten(0, 1).is_contiguous(memory_format=LAYOUTS[layout])
    assert not pooled[0, 20:].any()
    weight = random_features(*expected.shape, seed=7)
    (expected * weight).sum().backward()
    pooled.backward(weight.to(pooled))
    for a, b in zip(ours, exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert b.grad.any()
        assert a.grad.stride() == a.stride()
        torch.testing.assert_close(a.grad.cpu().double(), b.grad, rtol=1e-5, atol=1e-4)


def test_rows_beyond_the_counts_are_not_read(device):
    features = [f.to(device).requires_grad_() for f in pyramid()]
    boxes, counts = pyramid_boxes().to(device), torch.tensor([7, 0], device=device)
    results = []
    for filler in (0.0, NAN, INF):
        for b, count in enumerate((7, 0)):
            boxes[b, count:] = filler
        pooled = multiscale_roi_align(features, boxes, counts, 3, SCALES)
        grads = torch.autograd.grad(pooled, features, torch.ones_like(pooled))
        results.append((pooled, *grads))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)
    without_counts = multiscale_roi_align(features, boxes[:, :7], None, 3, SCALES)
    assert without_counts[0].equal(results[0][0][0, :7])


def test_level_by_area(device):
    # The pixels of level l have the value l. Levels begin at sides of 112, 224 and 448, and at
    # sides that round to these.
    sides = [0.0, 1.0, 111.99, 111.99999, 112.0, 223.99, 224.0, 447.99, 448.0]
    features = [torch.full((1, 1, 16, 16), float(i), device=device) for i in range(4)]
    boxes = torch.tensor([[[0, 0, s, s] for s in sides]], device=device)
    pooled = multiscale_roi_align(features, boxes, None, 1, SCALES, 1)
    assert pooled.flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert [
        reference.pyramid_level(b, SCALES) for b in boxes[0].tolist()
    ] == pooled.flatten().tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(24, 24), (24, 5), (0, 3), (0, 0)])
def test_module_equals_torchvision(sizes, layout, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    names = ["0", "1", "2", "3"]
    ours = [
        f.to(device).contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for f in pyramid()
    ]
    theirs = [f.to(device).requires_grad_() for f in pyramid()]
    boxes = [b[:n].to(device) for b, n in zip(pyramid_boxes(), sizes, strict=True)]
    image_shapes = [(128, 150), (100, 160)]
    arguments = names, 7, 2
    module = MultiScaleRoIAlign(*arguments)
    other = torchvision.ops.MultiScaleRoIAlign(*arguments)
    pooled = module({**dict(zip(names, ours, strict=True)), "pool": ours[0]}, boxes, image_shapes)
    expected = other(dict(zip(names, theirs, strict=True)), boxes, image_shapes)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    weight = random_features(*expected.shape, seed=7).to(expected)
    pooled.backward(weight)
    expected.backward(weight)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(
            a.grad, torch.zeros_like(b) if b.grad is None else b.grad, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_threads", [2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads, layout):
    features = [
        f.contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for f in pyramid(channels=70)
    ]

    def results() -> list[Tensor]:
        pooled = multiscale_roi_align(features, pyramid_boxes(60), None, 3, SCALES)
        weight = random_features(*pooled.shape, seed=7).to(pooled)
        return [pooled, *torch.autograd.grad(pooled, features, weight)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        torch.set_num_threads(num_threads)
        got = results()
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))
    assert [grad.stride() for grad in got[1:]] == [f.stride() for f in features]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_some_rois_are_added(dtype):
    features = [
        f.contiguous(memory_format=torch.channels_last).requires_grad_() for f in pyramid(dtype, 5)
    ]
    boxes, counts, how = pyramid_boxes(dtype=dtype), torch.tensor([24, 9]), (SCALES, 2)
    pooled = multiscale_roi_align(features, boxes, counts, 3, *how)
    weight = random_features(*pooled.shape, seed=7).to(dtype)
    expected = torch.autograd.grad(pooled, features, weight)
    sums = [torch.ones_like(f, requires_grad=False) for f in features]
    for image in range(2):
        own = [x[image : image + 1] for x in sums]
        for first, end in ((0, 7), (7, 24)):
            some = slice(image, image + 1), slice(first, end)
            add_multiscale_grad(own, weight[some], boxes[some], counts[[image]] - first, *how)
    add_multiscale_grad(sums, weight[:, :0], boxes[:, :0], None, *how)
    for a, b in zip(sums, expected, strict=True):
        torch.testing.assert_close(a, b + 1, rtol=1e-5, atol=1e-5)
        assert a.ne(1).any()


def test_gradients_are_added_to_what_fits_alone():
    features = [f.contiguous(memory_format=torch.channels_last) for f in pyramid(torch.float32)]
    boxes, grad = pyramid_boxes(), torch.zeros(2, 24, 3, 2, 2)
    for sums, scales, expected in (
        ([f.contiguous() for f in features], SCALES, "channels_last"),
        ([f.double() for f in features], SCALES, "with the dtype"),
        ([f[:1] for f in features], SCALES, "B and C of grad"),
        (features, SCALES[:3], "scales: expected one for each level"),
    ):
        with pytest.raises(RuntimeError, match=f"multiscale_roi_align_add_grad: .*{expected}"):
            add_multiscale_grad(sums, grad, boxes, None, scales)
    halves = [f.bfloat16() for f in features]
    with pytest.raises(RuntimeError, match="float32 or float64"):
        add_multiscale_grad(halves, grad.bfloat16(), boxes, None, SCALES)


def test_backward_is_deterministic_on_request(device):
    features = [f.to(device).requires_grad_() for f in pyramid(channels=8)]
    boxes = pyramid_boxes(200).to(device)

    def gradients() -> tuple[Tensor, ...]:
        pooled = multiscale_roi_align(features, boxes, None, 7, SCALES)
        return torch.autograd.grad(pooled, features, pooled.detach())

    usual = gradients()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, usual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stride", ["channels_last", "expanded", "flattened"])
def test_a_gradient_of_any_strides(stride, device):
    input = random_features(2, 20, 9, 11).to(device).requires_grad_()
    rois = random_rois(10, 2, 9).to(device)
    pooled = roi_align(input, rois, 3)
    weight = random_features(*pooled.shape, seed=7).to(device)
    if stride == "expanded":
        weight = weight[:1, :1].expand_as(pooled)
    (expected,) = torch.autograd.grad(pooled, input, weight.contiguous(), retain_graph=True)
    if stride == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    if stride == "flattened":
        last = input.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        pooled, input = roi_align(last, rois, 3).flatten(1), last
        weight = weight.flatten(1)
    (got,) = torch.autograd.grad(pooled, input, weight)
    assert got.stride() == input.stride()
    torch.testing.assert_close(got, expected)


def test_features_are_not_kept_for_backward():
    features, kept = [f.requires_grad_() for f in pyramid()], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        multiscale_roi_align(features, pyramid_boxes(), torch.tensor([3, 4]), 3, SCALES)
        roi_align(features[0], random_rois(4, 2, 9), 3)
    assert sorted(tuple(t.shape) for t in kept) == [(2,), (2, 24, 4), (4, 5)]


@given(st.integers(0, 10**6), st.integers(-1, 4), st.booleans(), st.sampled_from(sorted(LAYOUTS)))
def test_backward_is_the_transpose_of_forward(seed, ratio, aligned, layout):
    input = random_features(2, 5, 6, 7, seed=seed).contiguous(memory_format=LAYOUTS[layout])
    input.requires_grad_()
    pooled = roi_align(input, random_rois(6, 2, 14, seed), (2, 3), 0.5, ratio, aligned)
    weight = random_features(*pooled.shape, seed=seed + 1)
    (grad,) = torch.autograd.grad(pooled, input, weight)
    torch.testing.assert_close((input * grad).sum(), (pooled * weight).sum(), atol=1e-9, rtol=1e-9)


@given(st.integers(0, 10**6), st.integers(-1, 4), st.booleans())
def test_a_box_inside_a_flat_map_pools_to_its_value(seed, ratio, aligned):
    rois = random_rois(8, 1, 5, seed)
    rois[:, 1:] = rois[:, 1:].abs() + torch.tensor([1.0, 1.0, 2.0, 2.0])
    rois[:, 3:] = rois[:, 1:3] + 1.5
    pooled = roi_align(torch.full((1, 2, 20, 20), 3.0), rois, 2, 1.0, ratio, aligned)
    torch.testing.assert_close(pooled, torch.full_like(pooled, 3.0))


@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3))
def test_translation(seed, dx, dy):
    input = random_features(1, 3, 12, 12, seed=seed)
    rois = torch.cat([torch.zeros(4, 1), random_rois(4, 1, 4, seed)[:, 1:] + 3], 1).double()
    shifted = torch.zeros(1, 3, 18, 18, dtype=torch.float64)
    shifted[:, :, dy : dy + 12, dx : dx + 12] = input
    rois[:, 1:] = rois[:, 1:].clamp(0.5, 10)
    moved = rois + torch.tensor([0.0, dx, dy, dx, dy])
    torch.testing.assert_close(roi_align(shifted, moved, 3), roi_align(input, rois, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout, device):
    input = random_features(2, 2, 4, 5).to(device).contiguous(memory_format=LAYOUTS[layout])
    rois = random_rois(5, 2, 8).to(device)
    torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, 2, 0.5, 2, True), input.requires_grad_(), nondet_tol=1e-12
    )
    levels = [random_features(1, 2, n, n, seed=n).to(device) for n in (6, 3)]
    levels = [f.contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for f in levels]
    boxes = torch.tensor([[[1, 2, 14, 11], [0, 0, 200, 200]]], device=device).double()
    torch.autograd.gradcheck(
        lambda *f: multiscale_roi_align(list(f), boxes, None, 2, [0.25, 0.125]),
        levels,
        nondet_tol=1e-12,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, device):
    sample = samples(device)["random, ratio 2, aligned True"]
    input = sample.input.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    arguments = input, sample.rois, 0.25, 4, 5, 2, True
    torch.library.opcheck(torch.ops.fastdet.roi_align, arguments)
    features = [
        f.to(device).contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for f in pyramid()
    ]
    boxes, counts = pyramid_boxes().to(device), torch.tensor([3, 24], device=device)
    arguments = features, boxes, counts, 3, 2, SCALES, 2, 224, 4, False
    torch.library.opcheck(torch.ops.fastdet.multiscale_roi_align, arguments)


def test_under_autocast(device):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1).to(device)
    images = torch.rand(2, 3, 32, 40, device=device)
    boxes = pyramid_boxes().to(device) / 4
    with torch.autocast(device, torch.bfloat16):
        features = conv(images)
        pooled = multiscale_roi_align([features], boxes, None, 3, [1.0])
    assert features.dtype == pooled.dtype == torch.bfloat16
    expected = multiscale_roi_align([features.float()], boxes, None, 3, [1.0])
    assert pooled.equal(expected.bfloat16())
    pooled.float().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def loss(features: list[Tensor], boxes: Tensor) -> Tensor:
        pooled = multiscale_roi_align([f * 2 for f in features], boxes, None, 3, SCALES)
        return pooled.square().sum()

    features = [f.to(device, memory_format=torch.channels_last) for f in pyramid()]
    features = [f.requires_grad_() for f in features]
    boxes = pyramid_boxes().to(device)
    expected = torch.autograd.grad(loss(features, boxes), features)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    got = torch.autograd.grad(compiled(features, boxes), features)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_fx_traces_the_module(device):
    module = RoIAlign(3, 0.5, 2, aligned=True)
    traced = torch.fx.symbolic_trace(module)
    features = torch.rand(2, 4, 9, 12, generator=torch.Generator().manual_seed(0)).to(device)
    rois = random_rois(8, 2, 20).to(device)
    boxes = [rois[rois[:, 0] == image, 1:] for image in (0, 1)]
    assert traced(features, boxes).equal(module(features, boxes))
    assert traced(features, rois).equal(module(features, rois))


def test_bad_input_is_named(device):
    input, rois = samples(device)["cropped view"][:2]
    features = [f.to(device) for f in pyramid()]
    boxes = pyramid_boxes().to(device)
    with pytest.raises(
        ValueError, match=r"output_size: expected one or two numbers .* got \(3, 0\)"
    ):
        roi_align(input, rois, (3, 0))
    with pytest.raises(ValueError, match=r"boxes: expected a list of \(L, 4\), got \[\(9, 5\)\]"):
        roi_align(input, [rois], 3)
    with pytest.raises(ValueError, match=r"boxes: expected a tensor for each image"):
        roi_align(input, [], 3)
    with pytest.raises(RuntimeError, match=r"roi_align: input: expected floating \(B, C, H, W\)"):
        roi_align(input[0], rois, 3)
    with pytest.raises(RuntimeError, match=r"input: expected .* H and W above 0, got Float \(2, "):
        roi_align(input[:, :, :0], rois, 3)
    with pytest.raises(RuntimeError, match=r"rois: expected floating \(K, 5\), got Float \(9, 4\)"):
        roi_align(input, rois[:, 1:], 3)
    with pytest.raises(RuntimeError, match=r"rois: expected floating \(K, 5\), got Long"):
        roi_align(input, rois.long(), 3)
    with pytest.raises(ValueError, match=r"scales: expected falling numbers above 0"):
        multiscale_roi_align(features, boxes, None, 3, SCALES[::-1])
    with pytest.raises(ValueError, match=r"canonical_scale: expected a number above 0, got 0"):
        multiscale_roi_align(features, boxes, None, 3, SCALES, canonical_scale=0)
    with pytest.raises(ValueError, match=r"image_shapes: expected one for each image"):
        MultiScaleRoIAlign(["0"], 3, 2)({"0": features[0]}, list(boxes), [])
    with pytest.raises(RuntimeError, match=r"scales: expected one for each level, 4, got 3"):
        multiscale_roi_align(features, boxes, None, 3, SCALES[:3])
    with pytest.raises(RuntimeError, match=r"features: expected 1 to 8 levels, got 9"):
        multiscale_roi_align(features[:1] * 9, boxes, None, 3, [2.0**-i for i in range(9)])
    with pytest.raises(RuntimeError, match=r"features: expected the dtype, B and C of the first"):
        multiscale_roi_align([features[0].half(), *features[1:]], boxes, None, 3, SCALES)
    with pytest.raises(RuntimeError, match=r"boxes: expected floating \(B, K, 4\) with the B of"):
        multiscale_roi_align(features, boxes[:1], None, 3, SCALES)
    counts = torch.zeros(2, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match=r"counts: expected int64 \(B,\).* got Int \(2\)"):
        multiscale_roi_align(features, boxes, counts, 3, SCALES)


@pytest.mark.cuda
def test_devices_must_agree():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    sample = samples("cpu")["cropped view"]
    with pytest.raises(RuntimeError, match=r"rois: expected the device of the first argument"):
        roi_align(sample.input.cuda(), sample.rois, 3)
