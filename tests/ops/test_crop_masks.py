# SPDX-License-Identifier: BSD-3-Clause
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdet.ops import crop_masks
from tests import reference


class Sample(NamedTuple):
    masks: Tensor
    boxes: Tensor
    match: Tensor
    output_size: tuple[int, int] = (5, 5)


def blobs(*shape: int, seed: int = 0) -> Tensor:
    """Masks (B, G, H, W) of rectangles and noise."""
    generator = torch.Generator().manual_seed(seed)
    images, gts, height, width = shape
    masks = torch.rand(shape, generator=generator) < 0.2
    for b in range(images):
        for g in range(gts):
            y, x = (int(torch.randint(0, n, (), generator=generator)) for n in (height, width))
            masks[b, g, y : y + height // 2, x : x + width // 2] = True
    return masks


def random_boxes(*shape: int, extent: float = 60, seed: int = 0) -> Tensor:
    """(..., 4), some of them partly or completely outside masks of this size."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 1.2 * extent - 0.1 * extent
    side = torch.rand(*shape, 2, generator=generator) ** 2 * extent
    return torch.cat([corner, corner + side], -1)


def random_match(*shape: int, gts: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, gts, shape, generator=torch.Generator().manual_seed(seed))


ODD = [
    [10.0, 10.0, 10.0, 10.0],  # no area: one pixel
    [20.0, 30.0, 12.0, 11.0],  # inverted: one pixel
    [-30.0, -20.0, 90.0, 70.0],  # larger than the image
    [-50.0, 5.0, -10.0, 20.0],  # outside the image
    [100.0, 100.0, 130.0, 120.0],
    [3.5, 2.25, 4.0, 30.75],  # very narrow
    [0.0, 0.0, 60.0, 40.0],  # the whole image
]
NOT_FINITE = [
    [math.nan, 0.0, 10.0, 10.0],
    [0.0, -math.inf, 10.0, 10.0],
    [0.0, 0.0, math.inf, 10.0],
]


def samples(device: str) -> dict[str, Sample]:
    masks = blobs(2, 3, 40, 60)
    boxes, match = random_boxes(2, 9), random_match(2, 9, gts=3)
    table = {
        "random": Sample(masks, boxes, match),
        "uint8": Sample(masks.byte(), boxes, match),
        "oblong": Sample(masks, boxes, match, (3, 8)),
        "one bin": Sample(masks, boxes, match, (1, 1)),
        "28 x 28": Sample(masks, boxes, match, (28, 28)),
        "float64": Sample(masks, boxes.double(), match),
        "odd boxes": Sample(masks[:1], torch.tensor([ODD]), torch.zeros(1, 7, dtype=torch.int64)),
        "not finite": Sample(
            masks[:1], torch.tensor([NOT_FINITE]), torch.zeros(1, 3, dtype=torch.int64)
        ),
        "no such mask": Sample(masks, boxes, match * 4 - 2),
        "no match": Sample(masks, boxes, torch.full_like(match, -1)),
        "no boxes": Sample(masks, boxes[:, :0], match[:, :0]),
        "no masks": Sample(masks[:, :0], boxes, match),
        "no images": Sample(masks[:0], boxes[:0], match[:0]),
        "one pixel": Sample(torch.ones(2, 1, 1, 1) > 0, boxes / 30, match * 0),
        "non-contiguous": Sample(
            masks.transpose(2, 3).contiguous().transpose(2, 3),
            boxes.transpose(0, 2).contiguous().transpose(0, 2),
            match.T.contiguous().T,
        ),
        "expanded": Sample(masks[:1].expand(2, 3, 40, 60), boxes, match),
        "part of wider masks": Sample(masks[:, 1:, 3:, 7:50], boxes, match.clamp(max=1)),
    }
    for width in (15, 16, 17, 63, 64, 65, 129):  # around the widths of the vectors
        table[f"{width} columns"] = Sample(
            blobs(1, 2, 20, width),
            random_boxes(1, 6, extent=width),
            random_match(1, 6, gts=2),
            (7, 4),
        )
    return {
        name: Sample(s.masks.to(device), s.boxes.to(device), s.match.to(device), s.output_size)
        for name, s in table.items()
    }


SAMPLES = list(samples("cpu"))


@pytest.mark.parametrize("name", SAMPLES)
def test_equals_reference(name, device):
    sample = samples(device)[name]
    got = crop_masks(*sample[:3], sample.output_size)
    assert got.dtype == sample.boxes.dtype
    masks, boxes, match = (t.cpu() for t in sample[:3])
    expected = reference.crop_masks(masks, boxes, match, sample.output_size)
    close = 1e-12 if got.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=close)


def test_hand_worked(device):
    masks = torch.zeros(1, 2, 6, 6, dtype=torch.bool, device=device)
    masks[0, 1, :, 3:] = True  # the right half
    boxes = torch.tensor([[[1.0, 1.0, 5.0, 5.0], [0.0, 0.0, 2.0, 2.0]]], device=device)
    match = torch.tensor([[1, 1]], device=device)
    # The samples of the first bin are at 1.5 and 2.5: 0 and, half-way between a 0 and a 1, 0.5.
    # Those of the second bin are 1 and 1.
    row = torch.tensor([0.25, 1.0], device=device)
    got = crop_masks(masks, boxes, match, 2)
    assert got.equal(torch.stack([row.expand(2, 2), torch.zeros(2, 2, device=device)])[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchvision(dtype, device):
    heads = pytest.importorskip("torchvision.models.detection.roi_heads", exc_type=ImportError)
    masks = blobs(1, 4, 50, 70)
    boxes = torch.cat([random_boxes(1, 40, extent=70), torch.tensor([ODD])], 1).to(dtype)
    match = torch.arange(47)[None] % 4
    for size in (7, 28):
        got = crop_masks(masks.to(device), boxes.to(device), match.to(device), size)
        expected = heads.project_masks_on_boxes(masks[0], boxes[0], match[0], size)
        close = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(got[0].cpu(), expected, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_boxes_are_taken_as_float32(dtype, device):
    sample = samples(device)["random"]
    boxes = sample.boxes.to(dtype)
    got = crop_masks(sample.masks, boxes, sample.match, 5)
    expected = crop_masks(sample.masks, boxes.float(), sample.match, 5)
    assert got.equal(expected.to(dtype))


def test_huge_boxes_are_cropped_in_no_time(device):
    masks = blobs(1, 1, 40, 60).to(device)
    sides = torch.tensor([1e6, 1e9, 1e20, 3e38], device=device)
    boxes = torch.stack([-sides, -sides, sides, sides], 1)[None]
    match = torch.zeros(1, 4, dtype=torch.int64, device=device)
    got = crop_masks(masks, boxes, match, 3)
    assert got.isfinite().all()
    assert got.abs().max() <= 1e-2


def test_a_shifted_box_over_a_shifted_mask(device):
    masks, boxes = blobs(1, 1, 40, 60).to(device), random_boxes(1, 20, extent=25).to(device) + 6
    match = torch.zeros(1, 20, dtype=torch.int64, device=device)
    shifted = torch.nn.functional.pad(masks, (4, 0, 8, 0))
    # Powers of two, so that the rounding of the corners does not change.
    boxes = (boxes * 64).round() / 64
    got = crop_masks(shifted, boxes + torch.tensor([4.0, 8, 4, 8], device=device), match, 6)
    torch.testing.assert_close(got, crop_masks(masks, boxes, match, 6), rtol=0, atol=1e-6)


def test_opcheck(device):
    sample = samples(device)["random"]
    torch.library.opcheck(torch.ops.fastdet.crop_masks, (*sample[:3], *sample.output_size))


def test_bad_input_is_named(device):
    masks, boxes, match, _ = samples(device)["random"]
    with pytest.raises(ValueError, match="output_size: expected one or two numbers above 0"):
        crop_masks(masks, boxes, match, 0)
    for wrong in (masks.float(), masks[0], masks[:, :, :0]):
        with pytest.raises(RuntimeError, match=r"masks: expected bool or uint8 \(B, G, H, W\)"):
            crop_masks(wrong, boxes, match, 5)
    for wrong in (boxes[:1], boxes[..., :3], boxes.long(), boxes[0]):
        with pytest.raises(RuntimeError, match=r"boxes: expected floating \(B, K, 4\)"):
            crop_masks(masks, wrong, match, 5)
    for wrong in (match[:, :3], match.int(), match[0]):
        with pytest.raises(RuntimeError, match=r"match: expected int64 \(B, K\)"):
            crop_masks(masks, boxes, wrong, 5)
