# SPDX-License-Identifier: BSD-3-Clause
"""The drawn scenes that the detector of the README's picture learns from."""

import runpy
from pathlib import Path

import pytest
import torch

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "readme_picture.py"))


def test_a_seed_gives_one_scene_whose_boxes_lie_in_it() -> None:
    image, target = TOOL["scene"](3)
    again, _ = TOOL["scene"](3)
    assert torch.equal(image, again)
    assert not torch.equal(image, TOOL["scene"](4)[0])
    assert 0 <= image.min() < image.max() <= 1
    boxes = target["boxes"]
    assert len(boxes) == len(target["labels"]) > 0
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= TOOL["SIZE"]).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides.amax(dim=1) >= TOOL["SMALLEST"]).all()


@pytest.mark.parametrize("turn", range(8))
def test_boxes_turn_with_the_scene(turn: int) -> None:
    size = TOOL["SIZE"]
    image = torch.zeros(3, size, size)
    image[:, 20:35, 50:90] = 1
    boxes = torch.tensor([[50.0, 20.0, 90.0, 35.0]])
    image, target = TOOL["turned"](image, {"boxes": boxes}, turn)
    rows, columns = image[0].nonzero().unbind(1)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert target["boxes"].tolist() == [[float(side) for side in found]]
