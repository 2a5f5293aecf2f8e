# SPDX-License-Identifier: BSD-3-Clause
"""The outline of a mask, filled by pycocotools, is the mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from fastdet.data.outlines import mask_outline

CASES = {
    "pixel": ["1"],
    "row": ["0110"],
    "hole": ["1111", "1001", "1011", "1111"],
    "parts": ["1010", "0000", "0011"],
    "corners that touch": ["100", "010", "101"],
    "island in a hole": ["11111", "10001", "10101", "10001", "11111"],
    "all": ["111", "111"],
}


def filled(points: list[tuple[int, int]], height: int, width: int) -> np.ndarray:
    flat = [float(number) for point in points for number in point]
    return coco_mask.decode(coco_mask.frPyObjects([flat], height, width)[0]).astype(bool)


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_cases(rows) -> None:
    mask = np.array([[pixel == "1" for pixel in row] for row in rows])
    points = mask_outline(mask)
    assert points[0] == points[-1]
    assert np.array_equal(filled(points, *mask.shape), mask)


def test_corners_alone() -> None:
    assert mask_outline(np.ones((2, 3), bool)) == [(0, 0), (3, 0), (3, 2), (0, 2), (0, 0)]
    assert mask_outline(np.zeros((2, 3), bool)) == []


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_any_mask(height, width, data) -> None:
    size = height * width
    pixels = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    mask = np.array(pixels).reshape(height, width)
    if mask.any():
        assert np.array_equal(filled(mask_outline(mask), height, width), mask)
