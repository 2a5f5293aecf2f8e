# SPDX-License-Identifier: BSD-3-Clause
"""Boxes are drawn at the right place, in the colour of their class; captions stay inside."""

import numpy as np
import pytest
import torch

from fastdet.evaluation.pictures import class_colour, draw_boxes

CLASSES = ["background", "cell", "a rather long class name"]


def test_outline_has_the_class_colour_and_place() -> None:
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    boxes = torch.tensor([[20.0, 40.0, 60.0, 80.0]])
    picture = draw_boxes(image, boxes, torch.tensor([1]), CLASSES)
    factor = picture.width // 200
    assert picture.size == (200 * factor, 100 * factor)
    pixels = np.asarray(picture)
    colour = class_colour(1)
    assert tuple(pixels[60 * factor, 20 * factor]) == colour
    assert tuple(pixels[80 * factor, 40 * factor]) == colour
    assert tuple(pixels[60 * factor, 40 * factor]) == (0, 0, 0)
    assert tuple(pixels[60 * factor, 100 * factor]) == (0, 0, 0)


def test_image_is_not_changed_and_float_is_taken() -> None:
    image = torch.full((3, 64, 64), 0.5)
    before = image.clone()
    picture = draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), CLASSES)
    assert torch.equal(image, before)
    assert set(np.unique(np.asarray(picture))) == {128}


@pytest.mark.parametrize(
    "box",
    [
        [0.0, 0.0, 64.0, 64.0],
        [50.0, 0.0, 64.0, 3.0],
        [60.0, 60.0, 64.0, 64.0],
        [5.0, 5.0, 5.0, 5.0],
    ],
)
def test_captions_stay_inside(box: list[float]) -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    scores = torch.tensor([0.987])
    picture = draw_boxes(image, torch.tensor([box]), torch.tensor([2]), CLASSES, scores)
    filled = (np.asarray(picture) == class_colour(2)).all(-1)
    # The caption is wider than the outline of the box is thick, and has the height of a text.
    assert (filled.sum(axis=1) > 100).sum() >= 12


def test_captions_without_names_are_narrower() -> None:
    image = torch.zeros(3, 100, 384, dtype=torch.uint8)
    box, label, scores = torch.tensor([[5.0, 50, 9, 60]]), torch.tensor([2]), torch.tensor([0.5])
    areas = [
        int((np.asarray(draw_boxes(image, box, label, names, of)) == class_colour(2)).all(-1).sum())
        for names, of in ((CLASSES, scores), (None, scores), (None, None))
    ]
    assert areas[0] > areas[1] > areas[2] > 0


def test_colours_differ() -> None:
    assert len({class_colour(label) for label in range(1, 81)}) == 80


def test_masks_are_tinted_where_they_are_the_best_on_top() -> None:
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    masks = torch.zeros(2, 1, 400, 400, dtype=torch.bool)
    masks[0, :, 100:300, 100:300] = True
    masks[1, :, 200:350, 200:350] = True
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]])  # away from the tested pixels
    labels, scores = torch.tensor([1, 2]), torch.tensor([0.9, 0.3])
    pixels = np.asarray(draw_boxes(image, boxes, labels, CLASSES, scores, masks)).astype(int)
    of_best, of_other = np.array(class_colour(1)), np.array(class_colour(2))
    assert np.abs(pixels[150, 150] - 0.45 * of_best).max() <= 1
    assert np.abs(pixels[340, 340] - 0.45 * of_other).max() <= 1
    on_both = 0.45 * of_best + 0.55 * 0.45 * of_other
    assert np.abs(pixels[250, 250] - on_both).max() <= 1
    assert not pixels[390, 390].any()
    assert not image.any()
