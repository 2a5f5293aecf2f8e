# SPDX-License-Identifier: BSD-3-Clause
"""Laws that hold for every augmentation: pixels, boxes, labels and masks stay together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import max_pool2d, pad
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fastdet.data import CopyPaste, Mixed, MixUp, Mosaic, train_transforms
from tests.data.scenes import Painted, extents, of_colour

Make = Callable[[Any], Any]


def recipe(**options: Any) -> Make:
    return lambda data: data(train_transforms(**{"flip": 0.5, **options}))


def mixed(mix: Any, **options: Any) -> Make:
    return lambda data: Mixed(recipe(**{"scale_jitter": (1, 1), **options})(data), mix)


def everything(data: Any) -> Dataset[Any]:
    base = data(train_transforms(photometric=0.5, crop=0.3, lsj=(0.2, 2), size=96))
    return Mixed(Mixed(Mixed(base, CopyPaste(), 0.7), Mosaic(96), 0.7), MixUp(), 0.5)


# Those of the first table keep colours and show each pixel of one picture.
OPAQUE: dict[str, Make] = {
    "default": recipe(),
    "scale_jitter": recipe(scale_jitter=(0.3, 3)),
    "crop": recipe(crop=1.0),
    "lsj": recipe(lsj=(0.1, 2), size=80),
    "mosaic": mixed(Mosaic(120)),
    "copy_paste": mixed(CopyPaste()),
    "copy_paste_lsj": mixed(CopyPaste(), lsj=(0.1, 2), size=100),
    "mosaic_of_copy_paste": lambda data: Mixed(mixed(CopyPaste())(data), Mosaic(130)),
}
ALL: dict[str, Make] = {
    **OPAQUE,
    "photometric": recipe(photometric=1.0),
    "mixup": mixed(MixUp()),
    "everything": everything,
}
# Those whose pictures are resized at most once.
ONE_RESIZE = {*OPAQUE, "photometric", "mixup"} - {"copy_paste_lsj", "mosaic_of_copy_paste"}


def items(make: Make, seeds: int = 6, **options: Any) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Each item of the data set under some seeds; fewer where an item is made of many."""
    seeds = max(1, seeds // 2) if make in (everything, ALL["mosaic_of_copy_paste"]) else seeds
    data = make(lambda transforms: Painted(transforms, **options))
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        found += [data[index] for index in range(len(data))]
    return found


# Copy-paste needs masks.
WITHOUT_MASKS = [name for name in ALL if "copy_paste" not in name and name != "everything"]


@pytest.mark.parametrize(
    ("name", "masks"),
    [(name, True) for name in ALL] + [(name, False) for name in WITHOUT_MASKS],
)
def test_shapes_types_and_ranges(name: str, masks: bool) -> None:
    for image, target in items(ALL[name], 2, masks=masks):
        height, width = image.shape[1:]
        assert image.dtype == torch.float32
        assert image.shape[0] == 3
        assert 0 <= image.min() <= image.max() <= 1 + 1e-6
        boxes, labels = target["boxes"], target["labels"]
        assert boxes.dtype == torch.float32
        assert boxes.shape == (len(labels), 4)
        assert boxes.canvas_size == (height, width)
        assert labels.dtype == torch.int64
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
        assert ("masks" in target) is masks
        if masks:
            assert target["masks"].shape == (len(labels), height, width)
            assert target["masks"].dtype == torch.uint8
            assert target["masks"].flatten(1).any(1).all()
            assert target["masks"].max() <= 1 if len(labels) else True


@pytest.mark.parametrize("name", ALL)
def test_a_mask_lies_in_its_box_and_fills_it(name: str) -> None:
    seen = 0
    for _, target in items(ALL[name]):
        # Nearest-neighbour masks round by 1 px, which later enlargements multiply.
        tolerance = 1.01 if name in ONE_RESIZE else 5
        beyond = extents(target["masks"]) - target["boxes"]
        beyond[:, :2] *= -1
        assert (beyond <= tolerance).all()
        if name not in {"mosaic_of_copy_paste", "everything"}:
            # Each object is a rectangle, also where it is cut. What is left of one below another
            # may have any shape: cut again, it need not reach the sides of its box.
            assert (beyond >= -tolerance).all()
        seen += len(beyond)
    assert seen >= 25


@pytest.mark.parametrize("name", OPAQUE)
def test_labels_and_masks_follow_the_pixels(name: str) -> None:
    covered = total = 0
    reach = 3 if name in ONE_RESIZE else 7
    for image, target in items(OPAQUE[name]):
        inside = torch.zeros(5, *image.shape[1:], dtype=torch.bool)
        for label, mask in zip(target["labels"].tolist(), target["masks"].bool(), strict=True):
            inside[label] |= mask
            # Its edges may be blurred, and its sides may differ from those of the picture by 1 px.
            outside = pad((~mask)[None].float(), [reach] * 4, value=1)
            edge = max_pool2d(outside, 2 * reach + 1, stride=1)[0].bool()
            if not edge.all():
                assert of_colour(image, label)[~edge].float().mean() > 0.97, label
        for label in range(1, 5):
            coloured = of_colour(image, label)
            total += int(coloured.sum())
            covered += int((coloured & inside[label]).sum())
    # Cropping leaves out objects whose centre it cuts off.
    assert covered / total > (0.85 if name == "crop" else 0.98), (covered, total)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides(name: str) -> None:
    first, second = items(ALL[name], 2), items(ALL[name], 2)
    for (image, target), (again, same) in zip(first, second, strict=True):
        assert torch.equal(image, again)
        for key in ("boxes", "labels", "masks"):
            assert torch.equal(target[key], same[key])
    half = len(first) // 2
    pairs = zip(first[:half], first[half:], strict=True)
    assert any(a.shape != b.shape or not torch.equal(a, b) for (a, _), (b, _) in pairs)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("numbers", [[3], [0], [3, 3, 0]], ids=["empty", "one", "mostly_empty"])
def test_small_and_empty_data_sets(name: str, numbers: list[int]) -> None:
    for image, target in items(ALL[name], 4, numbers=numbers):
        objects = len(target["labels"])
        assert target["boxes"].shape == (objects, 4)
        assert target["masks"].shape == (objects, *image.shape[1:])
        assert numbers != [3] or objects == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (3, 3)])
def test_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    """A picture of a few pixels, or a line, is no reason to stop."""

    def data(transforms: Any) -> Painted:
        def shrunk(image: Any, target: dict[str, Any]) -> Any:
            # Not uint8, which torch cannot resize to one pixel.
            image, target = v2.Resize(list(size))(tv_tensors.Image(image.float()), target)
            return transforms(tv_tensors.Image(image.to(torch.uint8)), target)

        return Painted(shrunk)

    made = ALL[name](data)
    for index in range(len(made)):
        torch.manual_seed(index)
        image, target = made[index]
        assert min(image.shape) >= 1
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])


def test_objects_at_the_border_are_not_lost_to_rounding() -> None:
    """480 px resized to 480 give 480.00003, which torchvision takes for outside."""
    corners = torch.tensor([[500.0, 380.0, 640.0, 480.0]])
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(480, 640))
    image = tv_tensors.Image(torch.zeros(3, 480, 640, dtype=torch.uint8))
    transforms = train_transforms(flip=0)
    for seed in range(60):
        torch.manual_seed(seed)
        _, target = transforms(image, {"boxes": boxes, "labels": torch.tensor([1])})
        assert len(target["labels"]) == 1, seed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flip": 1.5}, r"flip: expected a probability in \[0, 1\], got 1.5"),
        ({"photometric": -1}, r"photometric: expected a probability in \[0, 1\], got -1"),
        ({"crop": float("nan")}, r"crop: expected a probability in \[0, 1\], got nan"),
        ({"lsj": (0.1, 2)}, "size: expected the side of the square that lsj gives, got None"),
        ({"lsj": (2, 1), "size": 64}, "scale must be .* got"),
        ({"lsj": (0.1, 2), "size": 0}, "size: expected a number of pixels from 1 on, got 0"),
    ],
)
def test_senseless_recipes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train_transforms(**options)


def test_photometric_changes_colours_alone() -> None:
    torch.manual_seed(0)
    plain = Painted(train_transforms((1, 1), flip=0))
    distorted = Painted(train_transforms((1, 1), flip=0, photometric=1.0))
    for index in range(3):
        (a, s), (b, t) = plain[index], distorted[index]
        assert not torch.equal(a, b)
        assert torch.equal(s["boxes"], t["boxes"])
        assert torch.equal(s["masks"], t["masks"])


def test_crop_keeps_an_object_and_its_probability() -> None:
    whole = 0
    for seed in range(100):
        torch.manual_seed(seed)
        image, target = Painted(train_transforms((1, 1), flip=0, crop=0.5), [0])[0]
        assert len(target["labels"]) >= 1
        whole += image.shape[1:] == (90, 130)
    # Half are not cropped, and one of seven crops is the whole image.
    assert 40 < whole < 74


def test_lsj_is_a_square_and_spans_its_range() -> None:
    widths = []
    for seed in range(80):
        torch.manual_seed(seed)
        image, target = Painted(train_transforms(flip=0, lsj=(0.2, 0.9), size=200), [4])[0]
        assert image.shape == (3, 200, 200)
        ((x1, _, x2, _),) = target["boxes"].tolist()  # of the whole picture
        widths.append((x2 - x1) / 200)
    assert 0.19 < min(widths) < 0.25
    assert 0.85 < max(widths) <= 0.9
