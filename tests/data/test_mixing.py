# SPDX-License-Identifier: BSD-3-Clause
"""Mosaic, mixup and copy-paste on cases worked by hand."""

from typing import Any

import pytest
import torch
from torchvision import tv_tensors

from fastdet.data import CopyPaste, Mixed, MixUp, Mosaic
from fastdet.data.mixing.items import extents
from tests.data.scenes import Painted, painted

Item = tuple[Any, dict[str, Any]]


def item(colour: int, *boxes: list[int], size: tuple[int, int] = (40, 60), label: int = 1) -> Item:
    """An image of one grey, and rectangular objects."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.full((len(boxes),), label),
        "masks": tv_tensors.Mask(masks),
        "image_id": colour,
    }
    return tv_tensors.Image(torch.full((3, *size), colour, dtype=torch.uint8)), target


def test_mosaic_shows_four_pictures_that_meet_at_a_point() -> None:
    # An object in the corner of each picture that lies at that point.
    corner = {1: [60, 60, 100, 100], 2: [0, 60, 40, 100], 3: [60, 0, 100, 40], 4: [0, 0, 40, 40]}
    pictures = [item(10 * n, corner[n], size=(100, 100), label=n) for n in (1, 2, 3, 4)]
    points = set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = Mosaic(100, scale=(1, 1))(pictures)
        x, y = target["boxes"][0, 2:].int().tolist()
        points.add((x, y))
        assert 25 <= min(x, y) <= max(x, y) <= 75
        left, top, right, bottom = (
            max(0, x - 40),
            max(0, y - 40),
            min(100, x + 40),
            min(100, y + 40),
        )
        assert target["boxes"].tolist() == [
            [left, top, x, y],
            [x, top, right, y],
            [left, y, x, bottom],
            [x, y, right, bottom],
        ]
        assert target["labels"].tolist() == [1, 2, 3, 4]
        assert target["image_id"] == 10
        assert torch.equal(extents(target["masks"]), target["boxes"])
        assert (image[:, :y, :x] == 10).all()
        assert (image[:, :y, x:] == 20).all()
        assert (image[:, y:, :x] == 30).all()
        assert (image[:, y:, x:] == 40).all()
    assert len(points) > 15


def test_mosaic_leaves_out_an_object_of_which_less_than_a_tenth_is_left() -> None:
    left_out = kept = 0
    for seed in range(60):
        torch.manual_seed(seed)
        pictures = [item(0, [0, 0, 100, 100], size=(100, 100)) for _ in range(4)]
        _, target = Mosaic(100, scale=(1.0, 3.0))(pictures)
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        kept += len(sides)
        left_out += 4 - len(sides)
        assert (sides.prod(1) > 10_000 / 10).all()  # at factor 1; more at a larger one
    assert kept > 50
    assert left_out > 50


def test_mosaic_scales_by_its_range() -> None:
    for seed in range(30):
        torch.manual_seed(seed)
        pictures = [item(9, [20, 10, 40, 30], size=(40, 60)) for _ in range(4)]
        _, target = Mosaic(120, scale=(0.25, 0.5))(pictures)
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        # 20 px of 60; the square has 120, so that they would be 40 at factor 1.
        assert (sides <= 20.7).all()
        assert (sides.amax(1) >= 9.3).all()


def test_mixup_blends_pictures_and_joins_objects() -> None:
    torch.manual_seed(0)
    first, second = item(200, [5, 5, 20, 20]), item(100, [30, 10, 50, 38], label=2)
    image, target = MixUp(alpha=1e6)([first, second])
    assert image.shape == (3, 40, 60)
    assert image.dtype == torch.uint8
    assert (image.int() - 150).abs().max() <= 1
    assert target["boxes"].tolist() == [[5, 5, 20, 20], [30, 10, 50, 38]]
    assert target["labels"].tolist() == [1, 2]
    assert torch.equal(extents(target["masks"]), target["boxes"])
    assert target["image_id"] == 200


def test_mixup_fits_the_second_picture_into_the_first() -> None:
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        wide = item(100, [0, 0, 200, 80], size=(80, 200))
        image, target = MixUp(alpha=1e6)([item(200), wide])
        ((x1, y1, x2, y2),) = target["boxes"].tolist()
        assert (x1, x2, y2 - y1) == (0, 60, 24)
        places.add(y1)
        rows = image[0].float().mean(1)
        assert (rows[int(y1) : int(y2)] - 150).abs().max() <= 1
        assert abs(float(rows.mean()) - (24 * 150 + 16 * 162) / 40) <= 1  # beside grey of 124
    assert len(places) > 8


def test_mixup_weights_are_around_a_half() -> None:
    torch.manual_seed(0)
    weights = [MixUp()([item(255), item(0)])[0].float().mean() / 255 for _ in range(100)]
    assert 0.4 < sum(weights) / 100 < 0.6
    assert min(weights) > 0.2
    assert max(weights) < 0.8


def pasted(first: Item, second: Item) -> Item:
    torch.manual_seed(0)
    return CopyPaste()([first, second])


def test_a_pasted_object_hides_what_is_below() -> None:
    below = item(10, [10, 10, 30, 30], [40, 20, 50, 30])
    image, target = pasted(below, item(99, [20, 0, 60, 15], label=2))
    assert target["labels"].tolist() == [1, 1, 2]
    assert target["boxes"].tolist() == [[10, 10, 30, 30], [40, 20, 50, 30], [20, 0, 60, 15]]
    masks = target["masks"]
    assert masks[0].sum() == 20 * 20 - 10 * 5
    assert masks[2].sum() == 40 * 15
    assert (image[0] == 99).sum() == 40 * 15
    assert (image[0, :15, 20:60] == 99).all()
    assert masks.sum(0).max() == 1


def test_the_box_of_a_covered_object_shrinks_to_what_is_left() -> None:
    image, target = pasted(item(10, [10, 10, 30, 30]), item(99, [0, 0, 25, 40], label=2))
    assert target["boxes"].tolist() == [[25, 10, 30, 30], [0, 0, 25, 40]]
    assert (image[0, 10:30, 25:30] == 10).all()
    for covered, labels in ((27, [1, 2]), (29, [2]), (30, [2])):  # 15, 5 and 0 % are left
        _, target = pasted(item(10, [10, 10, 30, 30]), item(99, [0, 0, covered, 40], label=2))
        assert target["labels"].tolist() == labels


def test_one_object_is_always_pasted_and_others_half_of_the_time() -> None:
    source = item(99, [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10])
    counts = []
    for seed in range(100):
        torch.manual_seed(seed)
        counts.append(len(CopyPaste()([item(10), source])[1]["boxes"]))
    assert min(counts) == 1
    assert max(counts) == 3
    assert 1.8 < sum(counts) / 100 < 2.2  # of three, one is certain: 1 + 2 / 2


def test_copy_paste_needs_masks() -> None:
    data = Mixed(Painted(masks=False), CopyPaste())
    with pytest.raises(ValueError, match=r"expected targets with masks, got boxes, .*image id 0"):
        data[0]


def test_the_extent_of_a_mask_includes_its_last_pixel() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.uint8)
    masks[0, 2, 3] = 1
    masks[1, 0:5, 0:7] = 1
    masks[2, 1, 2], masks[2, 3, 6] = 1, 1
    assert extents(masks).tolist() == [[3, 2, 4, 3], [0, 0, 7, 5], [2, 1, 7, 4]]
    assert extents(masks[:0]).shape == (0, 4)


def test_how_often_and_with_which_partners() -> None:
    class Names:
        items = 3

        def __call__(self, items: Any) -> Any:
            return tuple(name for (name,) in items)

    letters: Any = [("a",), ("b",), ("c",), ("d",)]
    torch.manual_seed(0)
    data = Mixed(letters, Names(), 0.25)
    assert len(data) == 4
    found = [data[1] for _ in range(400)]
    together = [names for names in found if len(names) == 3]
    assert 70 < len(together) < 130
    assert {names[0] for names in together} == {"b"}
    assert {names[1:] for names in together} == {(x, y) for x in "abcd" for y in "abcd"}
    assert {names for names in found if len(names) == 1} == {("b",)}
    never = Mixed(letters, Names(), 0.0)
    assert [never[i] for i in range(4)] == letters


def test_what_cannot_be_mixed() -> None:
    image, target = painted(0)
    with pytest.raises(ValueError, match="to mix items, got also area"):
        MixUp()([(image, {**target, "area": torch.ones(3)}), painted(1)])
    with pytest.raises(ValueError, match=r"probability: expected a number in \[0, 1\], got 1.5"):
        Mixed(Painted(), MixUp(), 1.5)
    with pytest.raises(ValueError, match="size: expected a number of pixels from 2 on, got 1"):
        Mosaic(1)
    with pytest.raises(ValueError, match=r"scale must be .* got \(0, 1\)"):
        Mosaic(64, (0, 1))
    with pytest.raises(ValueError, match="alpha: expected a finite number above 0, got 0"):
        MixUp(0)


@pytest.mark.parametrize("mix", [Mosaic(64), MixUp(), CopyPaste()])
def test_plain_tensors_and_other_box_formats(mix: Any) -> None:
    def plain(image: Any, target: dict[str, Any]) -> Item:
        parts = {k: v.as_subclass(torch.Tensor) for k, v in target.items() if k != "image_id"}
        return image.as_subclass(torch.Tensor), parts

    def centres(image: Any, target: dict[str, Any]) -> Item:
        from torchvision.transforms.v2 import functional

        boxes = functional.convert_bounding_box_format(target["boxes"], new_format="CXCYWH")
        return image, {**target, "boxes": boxes}

    made = []
    for change in (lambda *item: item, plain, centres):
        torch.manual_seed(4)
        made.append(mix([change(*painted(n)) for n in range(mix.items)]))
    for image, target in made[1:]:
        assert torch.equal(image, made[0][0])
        torch.testing.assert_close(target["boxes"], made[0][1]["boxes"])
