# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines of albumentations (2.0.8): in step, and seeded by torch alone."""

import os
import pickle
from collections import Counter
from typing import Any

import pytest
import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version
A = pytest.importorskip("albumentations")
pytestmark = pytest.mark.filterwarnings("ignore:Got processor for bboxes")

from fastdet.data import CopyPaste, Mixed, from_albumentations  # noqa: E402
from tests.data.scenes import Painted, extents, of_colour, painted  # noqa: E402


def pipeline(*steps: Any, **bbox_params: Any) -> Any:
    return A.Compose(list(steps), bbox_params=A.BboxParams("pascal_voc", **bbox_params))


def data(*steps: Any, numbers: Any = range(5), masks: bool = True, **bbox_params: Any) -> Painted:
    return Painted(from_albumentations(pipeline(*steps, **bbox_params)), numbers, masks)


def test_nothing_changes_without_steps() -> None:
    for number in range(5):
        image, target = data()[number]
        before, same = painted(number)
        assert image.dtype == torch.float32
        assert torch.equal((image * 255).round(), before.float())
        torch.testing.assert_close(target["boxes"], same["boxes"], rtol=0, atol=1e-4)
        assert torch.equal(target["labels"], same["labels"])
        assert torch.equal(target["masks"], same["masks"])
        assert target["image_id"] == number


@pytest.mark.parametrize("fields", [None, ["labels"], ["kinds", "again"]])
def test_boxes_labels_and_masks_stay_in_step(fields: list[str] | None) -> None:
    """Albumentations leaves the masks of the boxes that it drops."""
    steps = [A.HorizontalFlip(p=0.5), A.RandomCrop(33, 47, p=1.0), A.RandomRotate90(p=0.5)]
    made = data(*steps, label_fields=fields, min_visibility=0.2)
    numbers: Counter[int] = Counter()
    for seed in range(20):
        torch.manual_seed(seed)
        for index in range(len(made)):
            image, target = made[index]
            height, width = image.shape[1:]
            assert sorted((height, width)) == [33, 47]
            boxes, masks = target["boxes"], target["masks"]
            assert masks.shape == (len(boxes), height, width)
            assert len(target["labels"]) == len(boxes)
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height, width, height])).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
            assert boxes.canvas_size == (height, width)
            torch.testing.assert_close(
                boxes.as_subclass(torch.Tensor), extents(masks), rtol=0, atol=1e-3
            )
            for label, mask in zip(target["labels"].tolist(), masks.bool(), strict=True):
                assert of_colour(image, label)[mask].all()
            numbers[len(boxes)] += 1
    assert len(numbers) > 2  # some crops lost objects, some did not


def test_torch_seeds_it_whatever_came_before() -> None:
    steps = [A.RandomCrop(20, 20), A.HueSaturationValue(p=0.5), A.Affine(scale=(0.8, 1.2), p=0.7)]
    first, second = data(*steps), data(*steps)
    second[0]  # another state of its own generator
    pictures = []
    for seed in range(4):
        torch.manual_seed(seed)
        image, target = first[1]
        torch.manual_seed(seed)
        again, same = second[1]
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], same["boxes"])
        pictures.append(image)
    assert not torch.equal(pictures[0], pictures[1])


def test_steps_are_independent_of_each_other() -> None:
    """With `Compose.set_random_seed` two flips would always agree."""
    made = data(A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), numbers=[0])
    corners: Counter[tuple[bool, bool]] = Counter()
    for seed in range(80):
        torch.manual_seed(seed)
        x1, y1, _, _ = made[0][1]["boxes"][2].round().tolist()  # at the corner of the picture
        corners[x1 == 0, y1 == 0] += 1
    assert len(corners) == 4
    assert min(corners.values()) >= 8


def test_images_and_data_sets_without_objects_or_masks() -> None:
    steps = [A.HorizontalFlip(p=1), A.RandomCrop(20, 20, p=1)]
    _, target = data(*steps)[3]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 20, 20)
    _, target = data(*steps, masks=False)[0]
    assert "masks" not in target
    torch.manual_seed(0)
    _, target = data(A.Crop(60, 0, 69, 9, p=1), numbers=[0])[0]  # beside all objects
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 9, 9)


def test_tensors_and_pipelines_that_do_not_run() -> None:
    plain, _ = data()[0]
    image, target = data(A.ToTensorV2())[0]
    assert torch.equal(image, plain)
    assert target["masks"].shape == (3, 90, 130)
    params = A.BboxParams("pascal_voc")
    never = from_albumentations(A.Compose([A.HorizontalFlip(p=1)], p=0, bbox_params=params))
    assert torch.equal(never(*painted(0))[0], plain)
    image, _ = data(A.ToFloat(max_value=255, p=1))[0]
    torch.testing.assert_close(image, plain)


def test_it_is_pickled_for_workers_and_mixed_like_other_transforms() -> None:
    transforms = pickle.loads(pickle.dumps(from_albumentations(pipeline(A.HorizontalFlip(p=1)))))
    made = Mixed(Painted(transforms), CopyPaste())
    torch.manual_seed(0)
    image, target = made[0]
    assert image.shape == (3, 90, 130)
    assert len(target["boxes"]) == len(target["masks"])


@pytest.mark.parametrize(
    ("compose", "said"),
    [
        (A.Compose([]), "got Compose without bbox_params"),
        (A.HorizontalFlip(), "got HorizontalFlip without bbox_params"),
        (A.Compose([], bbox_params=A.BboxParams("coco")), "got format 'coco'"),
    ],
)
def test_other_pipelines_are_refused(compose: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_albumentations(compose)
