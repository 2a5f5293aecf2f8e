# SPDX-License-Identifier: BSD-3-Clause
"""paste_masks, and the run lengths of the same masks, on one table of samples."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet import _native
from fastdet.ops import encode_masks, paste_masks, paste_masks_rle
from tests import reference


class Sample(NamedTuple):
    masks: Tensor
    boxes: Tensor
    size: tuple[int, int] = (21, 34)


def random_masks(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def blobs(n: int, side: int, seed: int = 0) -> Tensor:
    """Discs with soft edges, like the output of a mask head."""
    generator = torch.Generator().manual_seed(seed)
    grid = (torch.arange(side) + 0.5) / side
    y, x, r = torch.rand(3, n, 1, 1, generator=generator)
    distance = ((grid[:, None] - y) ** 2 + (grid - x) ** 2).sqrt()
    return torch.sigmoid((r - distance) * 12)


def random_boxes(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Boxes, some partly outside the image."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    corner = torch.rand(n, 2, generator=generator) * size * 1.2 - size * 0.2
    side = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + side], 1)


ODD = [
    [0.0, 0.0, 33.0, 20.0],  # the image
    [-40.0, -30.0, 60.0, 50.0],  # larger
    [5.0, -9.0, 12.0, 40.0],  # whole columns: a run continues in the next column
    [-9.0, 5.0, 50.0, 12.0],
    [10.0, 10.0, 10.0, 10.0],  # no area
    [20.0, 12.0, 8.0, 5.0],  # inverted
    [7.2, 3.9, 7.4, 4.1],
    [-50.0, 3.0, -20.0, 9.0],  # outside the image
    [50.0, 40.0, 60.0, 44.0],
    [30.0, 15.0, 33.0, 20.0],  # up to the last pixel
    [-2000.0, -3000.0, 2500.0, 3500.0],
]
NOT_FINITE = [
    [math.nan, 0.0, 5.0, 5.0],
    [0.0, 0.0, math.inf, 5.0],
    [-math.inf, 0.0, math.inf, 5.0],
    [0.0, -3e38, 5.0, 3e38],
    [-1e12, -1e12, 1e12, 1e12],
]


def samples(device: str) -> dict[str, Sample]:
    boxes = random_boxes(9, 21, 34)
    odd, wild = torch.tensor(ODD), torch.tensor(NOT_FINITE)
    special = random_masks(5, 6, 6)
    special[0, 2, 3], special[1, 3, 2], special[2, 1] = math.nan, math.inf, -math.inf
    special[3, :2, :2] = torch.tensor([[3e38, -3e38], [-3e38, 3e38]])
    table = {
        "blobs": Sample(blobs(9, 28), boxes),
        "noise": Sample(random_masks(9, 14, 14), boxes),
        "odd boxes": Sample(random_masks(11, 7, 7), odd),
        "all ones in odd boxes": Sample(torch.ones(11, 7, 7), odd),
        "not finite": Sample(random_masks(5, 7, 7), wild),
        "special values": Sample(special, boxes[:5]),
        "float64": Sample(blobs(9, 28).double(), boxes.double()),
        "float64 boxes": Sample(blobs(9, 28), boxes.double() + 1e-9),
        "float64 masks": Sample(blobs(9, 28).double(), boxes),
        "oblong": Sample(random_masks(9, 5, 11), boxes),
        "one pixel": Sample(random_masks(9, 1, 1), boxes),
        "mask larger than its box": Sample(random_masks(9, 56, 56), boxes),
        "no masks": Sample(random_masks(0, 7, 7), boxes[:0]),
        "one row": Sample(random_masks(9, 7, 7), random_boxes(9, 1, 40), (1, 40)),
        "one column": Sample(random_masks(9, 7, 7), random_boxes(9, 40, 1), (40, 1)),
        "no image": Sample(random_masks(3, 7, 7), boxes[:3], (0, 5)),
        "non-contiguous": Sample(random_masks(9, 7, 7).mT, boxes.T.contiguous().T),
        "expanded": Sample(random_masks(1, 7, 7).expand(9, 7, 7), boxes),
    }
    for width in (15, 16, 17, 63, 64, 65, 130):  # around the widths of vectors and words
        table[f"{width} columns"] = Sample(
            blobs(6, 14, seed=width), random_boxes(6, 70, width), (70, width)
        )
    return {
        name: Sample(s.masks.to(device), s.boxes.to(device), s.size) for name, s in table.items()
    }


SAMPLES = list(samples("cpu"))
FINITE = [name for name in SAMPLES if name != "special values"]


@pytest.mark.parametrize("name", FINITE)
def test_equals_reference(name, device):
    sample = samples(device)[name]
    got = paste_masks(*sample, threshold=None)
    assert got.dtype == sample.masks.dtype
    expected = reference.paste_masks(sample.masks.cpu(), sample.boxes.cpu(), sample.size)
    close = 1e-12 if got.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=close)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("name", SAMPLES)
def test_threshold_is_that_of_the_probabilities(name, threshold, device):
    sample = samples(device)[name]
    bound = threshold if threshold in (0.0, 0.5) else _float_below(threshold, sample.masks.dtype)
    got = paste_masks(*sample, threshold=threshold)
    assert got.equal(paste_masks(*sample, threshold=None) > bound)


def _float_below(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is not above the threshold."""
    rounded = torch.tensor(threshold, dtype=dtype)
    if rounded.double() > threshold:
        rounded = rounded.nextafter(torch.tensor(-1.0, dtype=dtype))
    return rounded.item()


def test_hand_worked(device):
    masks = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]], device=device)
    # The padded mask has 4 pixels. The box grows by (2 + 2) / 2 about its centre: pixels 0 .. 4.
    boxes = torch.tensor([[1.0, 1.0, 3.0, 3.0]], device=device)
    got = paste_masks(masks, boxes, (5, 6), None)[0]
    torch.testing.assert_close(got[:, 5].cpu(), torch.zeros(5))
    # Positions (p + 0.5) * 4 / 5 - 0.5 are -0.1, 0.7, 1.5, 2.3, 3.1, clamped to [0, 3].
    columns = torch.tensor([0.0, 0.7, 1.5, 2.3, 3.0])
    bordered = torch.nn.functional.pad(masks[0].cpu(), (1, 1, 1, 1))
    low, f = columns.long(), columns % 1
    high = (low + 1).clamp(max=3)
    stretched = bordered[:, low] * (1 - f) + bordered[:, high] * f
    expected = stretched[low] * (1 - f[:, None]) + stretched[high] * f[:, None]
    torch.testing.assert_close(got[:, :5].cpu(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchvision(dtype, device):
    heads = pytest.importorskip("torchvision.models.detection.roi_heads", exc_type=ImportError)
    size = (121, 163)
    masks = torch.cat([blobs(30, 28), random_masks(30, 28, 28)]).to(dtype)
    boxes = random_boxes(60, *size).to(dtype)
    boxes[:, 2:] = boxes[:, 2:].clamp(min=2)  # torchvision fails where a box misses the image
    expected = heads.paste_masks_in_image(masks[:, None], boxes, size)[:, 0]
    got = paste_masks(masks.to(device), boxes.to(device), size, None).cpu()
    close = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got, expected, rtol=0, atol=close)
    pixels = paste_masks(masks.to(device), boxes.to(device), size).cpu()
    decided = (expected - 0.5).abs() > close
    assert pixels[decided].equal((expected > 0.5)[decided])
    assert decided.float().mean() > 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_masks_are_computed_in_float32(dtype, device):
    masks, boxes, size = samples(device)["blobs"]
    half = masks.to(dtype)
    assert paste_masks(half, boxes, size).equal(paste_masks(half.float(), boxes, size))
    assert paste_masks(half, boxes, size, None).equal(
        paste_masks(half.float(), boxes, size, None).to(dtype)
    )
    assert paste_masks_rle(half, boxes, size) == paste_masks_rle(half.float(), boxes, size)


# ---- run lengths --------------------------------------------------------------------------------


def coco_encoded(pixels: Tensor) -> list[Any]:
    coco_mask = pytest.importorskip("pycocotools.mask")
    return [coco_mask.encode(mask.T.contiguous().T.numpy()) for mask in pixels.cpu().byte()]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("name", SAMPLES)
def test_run_lengths_are_those_of_the_pasted_pixels(name, threshold, device):
    sample = samples(device)[name]
    pixels = paste_masks(*sample, threshold=threshold)
    expected = coco_encoded(pixels) if pixels.numel() else []
    got = paste_masks_rle(*sample, threshold=threshold)
    if sample.size[0] == 0:
        expected = [{"size": list(sample.size), "counts": b"0"}] * len(got)
    assert got == expected
    assert encode_masks(pixels) == expected


@given(
    st.integers(0, 10**6),
    st.integers(1, 70),
    st.integers(1, 150),
    st.floats(0.0, 1.0),
    st.integers(1, 9),
)
def test_run_lengths_of_random_masks(seed, height, width, share, side):
    pixels = random_masks(2, height, width, seed=seed) < share
    assert encode_masks(pixels) == coco_encoded(pixels)
    masks, boxes = random_masks(4, side, side, seed=seed), random_boxes(4, height, width, seed=seed)
    pasted = paste_masks(masks, boxes, (height, width), share)
    assert paste_masks_rle(masks, boxes, (height, width), share) == coco_encoded(pasted)


def test_run_lengths_of_hand_worked_masks(device):
    def counts(*rows: list[int]) -> bytes:
        (rle,) = encode_masks(torch.tensor([rows], dtype=torch.bool, device=device))
        assert rle["size"] == [len(rows), len(rows[0])]
        return rle["counts"]

    assert counts([0, 0], [0, 0]) == b"4"
    assert counts([1, 1], [1, 1]) == b"04"
    assert counts([0, 1], [0, 0]) == b"211"
    # Runs 1 1 1 1; the last is coded as the difference from the second.
    assert counts([0, 0], [1, 1]) == b"1110"
    assert counts([0] * 40) == b"X1"  # 40 = 8 + 1 * 32


def layouts(pixels: Tensor) -> dict[str, Tensor]:
    """The same masks (N, H, W), in memory as a caller may have them."""
    shifted = torch.cat([torch.zeros(3, dtype=torch.bool), pixels.flatten()])
    wide = torch.zeros(*pixels.shape[:2], 2 * pixels.size(2), dtype=torch.bool)
    wide[:, :, ::2] = pixels
    return {
        "contiguous": pixels,
        "unaligned": shifted[3:].view(pixels.shape),
        "not contiguous": wide[:, :, ::2],
        "by columns": pixels.transpose(1, 2).contiguous().transpose(1, 2),
        "of bytes 0 and 254": (pixels.byte() * 254).view(torch.bool),
    }


@pytest.mark.parametrize("width", [1, 3, 4, 5, 127, 128, 129, 260])
@pytest.mark.parametrize("height", [0, 1, 3, 32, 33, 67, 300])
def test_edges_of_masks_of_every_size(height, width, device):
    pixels = random_masks(3, height, width, seed=height) < 0.5
    pixels[1] = torch.arange(width) % 3 == 0  # the edges are those between columns
    by_column = pixels.transpose(1, 2).reshape(3, -1)
    before = torch.cat([torch.zeros(3, 1, dtype=torch.bool), by_column[:, :-1]], 1)
    changes = by_column ^ before[:, : by_column.size(1)]
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), changes.sum(1).cumsum(0)])
    for name, masks in layouts(pixels).items():
        edges, offsets = torch.ops.fastdet.mask_edges(masks.to(device))
        assert edges.cpu().equal(changes.nonzero()[:, 1]), name
        assert offsets.cpu().equal(ends), name


def test_bad_run_lengths_are_refused():
    edges, offsets = torch.tensor([1, 2]).numpy(), torch.tensor([0, 2]).numpy()
    assert _native.rle_counts(edges, offsets, 4) == [b"112"]
    for wrong in ([0, 3], [1, 2], [0, 2, 1, 2], [0], [-1, 2], []):
        with pytest.raises(ValueError, match=r"offsets: expected \(N \+ 1,\), rising from 0 to E"):
            _native.rle_counts(edges, torch.tensor(wrong, dtype=torch.int64).numpy(), 4)
    with pytest.raises(ValueError, match=r"edges: expected \(E,\)"):
        _native.rle_counts(edges[None], offsets, 4)


# ---- the same for all threads and instruction sets ----------------------------------------------


@pytest.mark.parametrize("isa", _native.usable_cpu_isas())
def test_instruction_sets_agree_to_the_bit(isa):
    sample = samples("cpu")["130 columns"]
    expected = paste_masks(*sample, None), paste_masks(*sample)
    before = _native.cpu_isa()
    _native.set_cpu_isa(isa)
    try:
        got = paste_masks(*sample, None), paste_masks(*sample)
    finally:
        _native.set_cpu_isa(before)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


def test_opcheck(device):
    masks, boxes, (height, width) = samples(device)["noise"]
    ops = torch.ops.fastdet
    for threshold in (None, 0.5):
        torch.library.opcheck(ops.paste_masks, (masks, boxes, height, width, threshold))
    torch.library.opcheck(ops.pasted_mask_edges, (masks, boxes, height, width, 0.5))
    torch.library.opcheck(ops.mask_edges, (paste_masks(masks, boxes, (height, width)),))


def test_bad_input_is_named(device):
    masks, boxes, size = samples(device)["noise"]
    for threshold in (-0.1, math.nan):
        for op in (paste_masks, paste_masks_rle):
            with pytest.raises(ValueError, match="threshold: expected a number >= 0"):
                op(masks, boxes, size, threshold)
    for wrong in (masks > 0.5, masks[0], masks[:, :0], masks[:, None]):
        with pytest.raises(RuntimeError, match=r"masks: expected floating \(N, h, w\)"):
            paste_masks(wrong, boxes, size)
    for wrong in (boxes[:3], boxes.long(), boxes[:, :2]):
        with pytest.raises(RuntimeError, match=r"boxes: expected floating \(N, 4\)"):
            paste_masks(masks, wrong, size)
    with pytest.raises(RuntimeError, match=r"size: expected numbers in \[0, 2\*\*30\), got -1"):
        paste_masks(masks, boxes, (-1, 5))
    with pytest.raises(RuntimeError, match=r"masks: expected bool \(N, H, W\)"):
        encode_masks(masks)


@pytest.mark.parametrize("isa", _native.usable_cpu_isas())
@pytest.mark.parametrize("width", [1, 7, 8, 9, 63, 64, 65, 130])
def test_instruction_sets_agree_on_run_lengths(isa, width):
    masks = torch.stack([random_masks(11, width, seed=width) < share for share in (0.03, 0.5, 1)])
    before = _native.cpu_isa()
    _native.set_cpu_isa(isa)
    try:
        got = encode_masks(masks)
    finally:
        _native.set_cpu_isa(before)
    assert got == coco_encoded(masks)
