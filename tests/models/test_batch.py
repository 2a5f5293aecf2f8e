# SPDX-License-Identifier: BSD-3-Clause
"""The border: the batch that `Border.pad` makes, its errors for bad input, and `restore`."""

import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fastdet.models import Batch, Border, Detections
from fastdet.models.batch import batch_shape, index_of_some, restore, rows_in_use
from fastdet.ops.padded_rows import take_rows

BOXES = torch.tensor([[1.0, 2, 11, 22]])
LABELS = torch.tensor([1])


def pad_small(
    images: list[Tensor],
    targets: list[dict[str, Tensor]] | None = None,
    masks: bool = False,
    **numbers,
) -> Batch:
    border = Border(**({"min_size": 64, "max_size": 96} | numbers))
    return border.pad(images, targets, num_classes=4, masks=masks, training=True)


def test_shapes_and_layout() -> None:
    batch = pad_small([torch.rand(3, 32, 40), torch.rand(3, 64, 64)])
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.tolist() == [[64, 80], [64, 64]]
    assert batch.gt_counts.tolist() == [0, 0]
    assert batch.gt_boxes.shape == (2, 8, 4)
    assert not batch.images[0, :, :, 80:].any()


def test_images_get_their_gradients() -> None:
    images = [torch.rand(3, 64, side, requires_grad=True) for side in (80, 64)]
    batch = pad_small(images)
    weight = torch.rand(batch.images.shape)
    found = torch.autograd.grad((batch.images * weight).sum(), images)
    std = torch.tensor(Border(64, 96).image_std)[:, None, None]
    for i, side in enumerate((80, 64)):
        torch.testing.assert_close(found[i], weight[i, :, :64, :side] / std)


def test_size_divisor_makes_coarser_buckets() -> None:
    batch = pad_small([torch.rand(3, 64, 80)], size_divisor=128)
    assert batch_shape(batch) == (1, 128, 128, 8)


def test_a_coarser_divisor_leaves_a_handful_of_shapes() -> None:
    torch.manual_seed(0)
    images = [torch.rand(3, *size) for size in ((48, 64), (64, 48), (40, 64), (64, 64), (43, 64))]
    shapes = {
        divisor: {
            batch_shape(pad_small([image], min_size=(40, 48, 64), size_divisor=divisor))
            for image in images * 8
        }
        for divisor in (8, 64)
    }
    assert shapes[64] == {(1, 64, 64, 8), (1, 64, 128, 8), (1, 128, 64, 8)}
    assert len(shapes[8]) > 8


def test_a_grey_image_stands_for_all_channels() -> None:
    grey = torch.rand(1, 64, 80)
    batch, expected = pad_small([grey]), pad_small([grey.expand(3, -1, -1)])
    assert torch.equal(batch.images, expected.images)


def test_other_channels_and_a_fixed_size() -> None:
    numbers = {"image_mean": (0.5, 0.25), "image_std": (2.0, 4.0), "fixed_size": (64, 32)}
    target = {"boxes": BOXES, "labels": LABELS}
    batch = pad_small([torch.ones(2, 32, 32)], [target], **numbers)
    assert batch.images.shape == (1, 2, 64, 32)
    assert batch.images[0, :, 5, 5].tolist() == [0.25, 0.1875]
    assert batch.gt_boxes[0, 0].tolist() == [1, 4, 11, 44]


def test_each_image_draws_one_of_several_sizes() -> None:
    torch.manual_seed(0)
    batch = pad_small([torch.rand(3, 50, 50)] * 30, min_size=(32, 64))
    assert set(map(tuple, batch.sizes.tolist())) == {(32, 32), (64, 64)}


@pytest.mark.parametrize(("count", "rows"), [(0, 8), (8, 8), (9, 16), (16, 16), (17, 32)])
def test_ground_truth_rows_are_powers_of_two(count: int, rows: int) -> None:
    target = {"boxes": BOXES.repeat(count, 1), "labels": LABELS.repeat(count)}
    batch = pad_small([torch.rand(3, 64, 64)], [target])
    assert batch.gt_boxes.shape == (1, rows, 4)
    assert batch.gt_counts.tolist() == [count]


def test_boxes_follow_the_resize_and_come_back() -> None:
    images = [torch.rand(3, 32, 48), torch.rand(3, 100, 50)]
    target = {"boxes": BOXES, "labels": LABELS}
    batch = pad_small(images, [target, target])
    assert batch.sizes.tolist() == [[64, 96], [96, 48]]
    torch.testing.assert_close(batch.gt_boxes[0, 0], 2 * BOXES[0])
    detections = Detections(
        batch.gt_boxes[:, :1], torch.ones(2, 1), torch.ones(2, 1).long(), batch.gt_counts
    )
    restored = restore(detections, batch).to_list()
    for of_image in restored:
        torch.testing.assert_close(of_image["boxes"], BOXES)


def test_masks_are_resized_as_torchvision_does_and_padded() -> None:
    torch.manual_seed(0)
    sizes = [(32, 48), (100, 50), (64, 64), (61, 47), (200, 7)]
    images = [torch.rand(3, *size) for size in sizes]
    masks = [torch.rand(n, *size) < 0.5 for n, size in zip((1, 3, 2, 0, 9), sizes, strict=True)]
    masks[1] = masks[1].byte()  # type: ignore[assignment]
    targets = [
        {"boxes": BOXES.repeat(len(m), 1), "labels": LABELS.repeat(len(m)), "masks": m}
        for m in masks
    ]
    for numbers in ({}, {"fixed_size": (70, 53)}):
        batch = pad_small(images, targets, masks=True, **numbers)
        width_first = numbers and (53, 70)
        transform = GeneralizedRCNNTransform(
            64, 96, [0.0] * 3, [1.0] * 3, fixed_size=width_first or None
        )
        assert batch.gt_masks is not None
        assert batch.gt_masks.dtype == torch.bool
        assert batch.gt_masks.shape == (5, 16, *batch.images.shape[2:])
        _, expected = transform(images, targets)
        for own, target in zip(batch.gt_masks, expected, strict=True):
            count, height, width = target["masks"].shape
            assert torch.equal(own[:count, :height, :width], target["masks"].bool())
            assert own.sum() == target["masks"].sum()  # no pixel outside the image


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what is resident")
def test_padded_masks_take_no_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    counts = [257, *[1] * 7]
    images = [torch.rand(3, 256, 256) for _ in counts]
    targets = [
        {"boxes": BOXES.repeat(n, 1), "labels": LABELS.repeat(n), "masks": torch.ones(n, 256, 256)}
        for n in counts
    ]
    targets = [{**target, "masks": target["masks"].bool()} for target in targets]
    before = resident()
    batch = pad_small(images, targets, masks=True, min_size=256, max_size=256)
    after = resident()
    assert batch.gt_masks is not None
    assert batch.gt_masks.numel() == 8 * 512 << 16  # 256 MiB
    assert after - before < 64 << 20
    assert batch.gt_masks.sum() == sum(counts) << 16


def test_masks_that_no_one_learns_are_not_read() -> None:
    target = {"boxes": BOXES, "labels": LABELS, "masks": torch.zeros(7)}
    assert pad_small([torch.rand(3, 64, 64)], [target]).gt_masks is None


def test_to_list_ends_at_the_counts() -> None:
    detections = Detections(
        torch.rand(2, 3, 4), torch.rand(2, 3), torch.ones(2, 3).long(), torch.tensor([2, 0])
    )
    first, second = detections.to_list()
    assert torch.equal(first["boxes"], detections.boxes[0, :2])
    assert [len(first[key]) for key in ("labels", "scores")] == [2, 2]
    assert [len(second[key]) for key in ("boxes", "labels", "scores")] == [0, 0, 0]


def test_rows_in_use() -> None:
    assert rows_in_use(torch.tensor([3, 5]), 8) == 5
    assert rows_in_use(torch.tensor([0, 0]), 8) == 1
    assert rows_in_use(torch.tensor([9]), 8) == 8


def test_index_of_some() -> None:
    assert index_of_some(torch.tensor([True, True])) is None
    found = index_of_some(torch.tensor([True, False, True]))
    assert found is not None
    assert found.tolist() == [0, 2]
    of_none = index_of_some(torch.tensor([False, False]))
    assert of_none is not None
    assert of_none.tolist() == [0]


def test_take_rows_takes_the_first_row_for_negative_indices() -> None:
    values = torch.arange(12.0).view(2, 3, 2)
    index = torch.tensor([[2, -1], [-2, 1]])
    expected = torch.stack((values[0, [2, 0]], values[1, [0, 1]]))
    assert torch.equal(take_rows(values, index), expected)


IMAGE = torch.rand(3, 64, 64)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (IMAGE, TypeError, "expected a list"),
        ([], ValueError, "at least one image"),
        ([IMAGE, None], TypeError, "image 1: expected a tensor"),
        ([IMAGE[0]], ValueError, r"image 0: expected shape \(3, H, W\), .*got \(64, 64\)"),
        ([IMAGE[:2]], ValueError, r"or \(1, H, W\) for grey, got \(2, 64, 64\)"),
        ([torch.rand(3, 0, 4)], ValueError, r"got \(3, 0, 4\)"),
        ([(IMAGE * 255).byte()], TypeError, "image 0: expected a float tensor.*got torch.uint8"),
        (
            [IMAGE, (IMAGE > 0).float() * 255],
            ValueError,
            r"image 1: expected values in \[0, 1\], got one of 255; .* divided by 255$",
        ),
        ([torch.full((3, 9, 9), 255, dtype=torch.float16)], ValueError, "image 0: .* one of 255;"),
    ],
)
def test_bad_images(images: list[Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pad_small(images)


def test_images_of_unusual_range() -> None:
    """A bicubic overshoot is no mistake; with other means, nor is any other scale."""
    checkers = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float()
    checkers = checkers.expand(1, 3, -1, -1)
    larger = torch.nn.functional.interpolate(checkers, (90, 90), mode="bicubic")
    assert 1.1 < larger.max() < 1.5
    pad_small([larger[0], torch.full((3, 64, 64), torch.nan)])
    pad_small([IMAGE * 255], image_mean=(123.7, 116.3, 103.5), image_std=(58.4, 57.1, 57.4))
    pad_small([torch.randn(3, 64, 64)], image_mean=(0, 0, 0), image_std=(1, 1, 1))


@pytest.mark.parametrize(
    ("boxes", "labels", "error", "message"),
    [
        (
            None,
            LABELS,
            ValueError,
            r"image 1: expected keys \['boxes', 'labels'\], missing {'boxes'}",
        ),
        (BOXES, None, ValueError, "missing {'labels'}"),
        (BOXES[0], LABELS, ValueError, r"boxes of image 1: expected shape \(G, 4\), got \(4,\)"),
        (BOXES[:, :3], LABELS, ValueError, r"got \(1, 3\)"),
        (BOXES.long(), LABELS, TypeError, "boxes of image 1: expected a float tensor"),
        (BOXES, LABELS.repeat(2), ValueError, r"labels of image 1: expected shape \(1,\)"),
        (BOXES, LABELS.int(), TypeError, "labels of image 1: expected int64, got torch.int32"),
        (BOXES, LABELS * 0, ValueError, r"labels of image 1: expected 1 .. 3 .*got 0"),
        (BOXES, LABELS * 4, ValueError, "got 4"),
        (torch.tensor([[50.0, 20, 30, 40]]), LABELS, ValueError, r"image 1.*x2 > x1.*50\.0, 20"),
        (torch.tensor([[20.0, 50, 40, 30]]), LABELS, ValueError, "must be converted first"),
        (torch.tensor([[20.0, 30, 20, 40]]), LABELS, ValueError, "x2 > x1"),
        (torch.tensor([[20.0, 30, torch.nan, 40]]), LABELS, ValueError, "finite"),
        (torch.tensor([[20.0, 30, torch.inf, 40]]), LABELS, ValueError, "finite"),
    ],
)
def test_bad_targets(
    boxes: Tensor | None, labels: Tensor | None, error: type[Exception], message: str
) -> None:
    bad = {"boxes": boxes, "labels": labels}
    bad = {key: value for key, value in bad.items() if value is not None}
    good = {"boxes": BOXES, "labels": LABELS}
    with pytest.raises(error, match=message):
        pad_small([IMAGE, IMAGE], [good, bad])


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (None, ValueError, "target of image 1: expected keys .*missing {'masks'}"),
        (torch.zeros(1, 64, 32).bool(), ValueError, r"masks of image 1: .*shape \(2, 64, 64\)"),
        (torch.zeros(2, 64, 32).bool(), ValueError, r"got \(2, 64, 32\)"),
        (torch.zeros(2, 64, 64), TypeError, "masks of image 1: expected bool or uint8, got .*32"),
        (torch.arange(2).byte()[:, None, None].expand(2, 64, 64) * 7, ValueError,
         "mask 1 of image 1: expected 0 and 1, got 7; convert an image of instance numbers"),
    ],
)  # fmt: skip
def test_bad_masks(masks: Tensor | None, error: type[Exception], message: str) -> None:
    none = torch.zeros(0, 64, 64).bool()
    good = {"boxes": BOXES[:0], "labels": LABELS[:0], "masks": none}
    bad = {"boxes": BOXES.repeat(2, 1), "labels": LABELS.repeat(2)}
    with pytest.raises(error, match=message):
        pad_small(
            [IMAGE, IMAGE], [good, bad if masks is None else bad | {"masks": masks}], masks=True
        )


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"min_size": 0}, "min_size: expected a number above 0, got 0"),
        ({"min_size": ()}, r"min_size: expected a number above 0, got \(\)"),
        ({"max_size": -1}, "max_size: expected a number above 0, got -1"),
        ({"fixed_size": (64, 0)}, r"fixed_size: expected a number above 0, got \(64, 0\)"),
        ({"image_mean": (0.5,)}, "image_std: expected one number for each channel .*1, got 3"),
    ],
)
def test_bad_borders(numbers: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Border(**numbers)  # type: ignore[arg-type]


def test_images_that_were_not_resized_have_nothing_to_restore() -> None:
    batch = pad_small([torch.rand(3, 32, 48)])._replace(original_sizes=None)
    found = Detections(BOXES[None], torch.ones(1, 1), LABELS[None], torch.tensor([1]))
    assert restore(found, batch) is found


def test_one_target_for_each_image() -> None:
    with pytest.raises(ValueError, match="one for each of 2 images, got 1"):
        pad_small([IMAGE, IMAGE], [{"boxes": BOXES, "labels": LABELS}])
