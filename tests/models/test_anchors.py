# SPDX-License-Identifier: BSD-3-Clause
"""Anchors compared with torchvision's, and which anchors are kept between calls."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from fastdet.models import anchors as module
from fastdet.models.anchors import cell_anchors, in_anchor_order, pyramid_anchors


def pyramid(*grids: tuple[int, int]) -> list[Tensor]:
    return [torch.zeros(1, 1, *grid) for grid in grids]


@pytest.mark.parametrize(
    "sizes", [[(32,), (64,), (128,)], [(32, 40, 50), (64, 80, 101), (128, 161, 203)]]
)
def test_anchors_equal_torchvisions(sizes: list[tuple[int, ...]]) -> None:
    images = torch.zeros(1, 3, 96, 160)
    features = pyramid((12, 20), (6, 10), (4, 5))  # the last stride is 24 by 32
    ratios = ((0.5, 1.0, 2.0),) * 3
    expected = AnchorGenerator(tuple(sizes), ratios)(ImageList(images, [(96, 160)]), features)
    anchors = pyramid_anchors(images, features, cell_anchors(sizes))
    assert torch.equal(anchors, expected[0])


def test_maps_become_rows_in_anchor_order() -> None:
    images, features = torch.zeros(2, 3, 32, 32), pyramid((4, 4), (2, 2))
    anchors = pyramid_anchors(images, features, cell_anchors([(8,), (16,)]))
    # A map with channels (cell, coordinate) whose values are the anchors themselves.
    maps = [
        boxes.view(side, side, 12).permute(2, 0, 1).expand(2, -1, -1, -1)
        for boxes, side in zip(anchors.split((48, 12)), (4, 2), strict=True)
    ]
    rows = in_anchor_order(maps, 4)
    assert torch.equal(torch.cat(rows, dim=1), anchors.expand(2, -1, -1))


def test_kept_anchors_are_neither_fake_nor_inference_tensors() -> None:
    module._kept_anchors.cache_clear()
    cells = cell_anchors([(32,), (64,)])
    with FakeTensorMode():
        fake = pyramid_anchors(torch.zeros(1, 3, 28, 20), pyramid((7, 5), (4, 3)), cells)
    assert isinstance(fake, FakeTensor)
    with torch.inference_mode():
        first = pyramid_anchors(torch.zeros(1, 3, 28, 20), pyramid((7, 5), (4, 3)), cells)
    assert type(first) is Tensor
    assert not first.is_inference()
    second = pyramid_anchors(torch.ones(2, 3, 28, 20), pyramid((7, 5), (4, 3)), cells)
    assert second is first


def test_as_many_sizes_as_levels() -> None:
    message = r"anchor_sizes: expected one for each of the backbone's 2 levels, got 3"
    with pytest.raises(ValueError, match=message):
        pyramid_anchors(
            torch.zeros(1, 3, 28, 20), pyramid((7, 5), (4, 3)), cell_anchors([(8,), (9,), (10,)])
        )
