# SPDX-License-Identifier: BSD-3-Clause
"""Transforms: painted rectangles are found again under their boxes, for many random draws."""

import pytest
import torch
from torchvision import tv_tensors

from fastdet.data import ScaleJitter, eval_transforms, train_transforms
from fastdet.data.transforms import CANVAS_COLOUR

HEIGHT, WIDTH = 90, 130
# One colour channel each, so that they stay apart; the third one lies at the image's corner.
BOXES = [[20, 30, 61, 55], [70, 10, 117, 80], [0, 0, 25, 12]]


def painted():
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(BOXES):
        image[channel, y1:y2, x1:x2] = 255
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor(BOXES, dtype=torch.float32), format="XYXY", canvas_size=(HEIGHT, WIDTH)
    )
    masks = tv_tensors.Mask(image.bool().byte())  # in the order of the channels and the labels
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 3]), "masks": masks, "image_id": 42}
    return tv_tensors.Image(image), target


def extent(channel):
    """The box around the painted pixels; the grey canvas is about half as bright."""
    ys, xs = (channel > 0.7).nonzero(as_tuple=True)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


@pytest.mark.parametrize(
    "transform",
    [
        train_transforms((1, 1), flip=1),
        train_transforms((0.5, 0.6), flip=0),
        train_transforms((1.5, 1.8), flip=0),
        train_transforms(),
    ],
    ids=["flip", "away", "closer", "default"],
)
def test_boxes_follow_the_pixels(transform):
    seen = 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = transform(*painted())
        assert image.shape == (3, HEIGHT, WIDTH)
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1
        assert target["image_id"] == 42
        assert target["boxes"].dtype == torch.float32
        assert len(target["boxes"]) == len(target["labels"])
        assert target["masks"].shape == (len(target["labels"]), HEIGHT, WIDTH)
        for box, label, mask in zip(
            *(target[k] for k in ("boxes", "labels", "masks")), strict=True
        ):
            if (box[2:] - box[:2]).min() >= 3:  # a thinner sliver may be blurred away
                assert (extent(image[label - 1]) - box).abs().max() <= 1
                assert (extent(mask) - box).abs().max() <= 1
                seen += 1
    assert seen > 50


def test_boxes_that_leave_the_frame_go_with_their_labels():
    transform = train_transforms((3, 3), flip=0)
    numbers = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*painted())
        visible = {c + 1 for c in range(3) if (image[c] > 0.7).sum() > 20}
        labels = set(target["labels"].tolist())
        assert visible <= labels
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        assert (sides >= 1).all()
        numbers.add(len(labels))
    assert len(numbers) > 1  # some draws lost a box, some did not


def test_scale_jitter_is_log_uniform_between_its_bounds_and_keeps_the_aspect():
    jitter, factors = ScaleJitter((0.5, 2.0)), []
    image = tv_tensors.Image(torch.zeros(3, 400, 400, dtype=torch.uint8))
    box = tv_tensors.BoundingBoxes(
        torch.tensor([[199.0, 199.0, 201.0, 201.0]]), format="XYXY", canvas_size=(400, 400)
    )
    torch.manual_seed(0)
    for _ in range(200):
        width, height = (lambda b: b[2:] - b[:2])(jitter(image, box)[1][0])
        if min(width, height) > 0:  # else out of the frame
            assert abs(width - height) < 1e-3
            factors.append(width / 2)
    factors = torch.tensor(factors)
    assert len(factors) > 150
    assert 0.5 <= factors.min() < 0.55
    assert 1.8 < factors.max() <= 2.001
    assert 0.4 < (factors < 1).float().mean() < 0.6


def test_the_canvas_is_grey_and_the_whole_image_lies_on_it():
    torch.manual_seed(0)
    image, target = ScaleJitter((0.5, 0.5))(*painted())
    params_area = (image == torch.tensor(CANVAS_COLOUR).view(3, 1, 1)).all(0).float().mean()
    assert 0.7 < params_area < 0.8  # half the side is a quarter of the area
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    expected = (torch.tensor(BOXES)[:, 2:] - torch.tensor(BOXES)[:, :2]) / 2
    assert (sides - expected).abs().max() < 0.01


def test_the_seed_decides():
    transform = train_transforms()
    torch.manual_seed(3)
    first = transform(*painted())
    torch.manual_seed(3)
    second = transform(*painted())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1]["boxes"], second[1]["boxes"])
    third = transform(*painted())
    assert not torch.equal(first[0], third[0])


@pytest.mark.parametrize("transform", [train_transforms(), eval_transforms()])
def test_images_without_boxes(transform):
    image, target = painted()
    target["boxes"] = tv_tensors.wrap(target["boxes"][:0], like=target["boxes"])
    target["labels"] = target["labels"][:0]
    target["masks"] = tv_tensors.Mask(target["masks"][:0])
    for _ in range(5):
        image_out, target_out = transform(image, target)
        assert image_out.shape == (3, HEIGHT, WIDTH)
        assert target_out["boxes"].shape == (0, 4)
        assert target_out["labels"].shape == (0,)
        assert target_out["masks"].shape == (0, HEIGHT, WIDTH)


def test_evaluation_changes_nothing_but_the_dtype():
    image, target = eval_transforms()(*painted())
    assert image.dtype == torch.float32
    assert torch.equal(image * 255, painted()[0].float())
    assert target["boxes"].tolist() == BOXES
    assert torch.equal(target["masks"], painted()[1]["masks"])


@pytest.mark.parametrize("scale", [(0, 1), (2, 1), (-1, 1), (1, float("inf"))])
def test_senseless_scales(scale):
    with pytest.raises(ValueError, match="scale must be"):
        train_transforms(scale_jitter=scale)
