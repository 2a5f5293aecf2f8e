# SPDX-License-Identifier: BSD-3-Clause
"""Sizes that fit a data set are found, and how well anchors fit is what a slow count says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from fastdet.data import open_dataset, write_shapes
from fastdet.models import fcos, retinanet
from fastdet.models.anchors import cell_anchors
from fastdet.models.border import Border
from fastdet.training.anchor_fit import (
    anchor_fit,
    boxes_in_training,
    fit_line,
    fitting_sizes,
    matched_by_iou,
)

CELLS = cell_anchors([(32,), (64,), (128,), (256,), (512,)])


def boxes(median: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return median * np.exp(rng.normal(0, 0.5, (300, 1)) + rng.normal(0, 0.1, (300, 2)))


def test_the_fit_is_the_best_iou_at_the_same_centre() -> None:
    wh = boxes(60.0)
    fit = anchor_fit(CELLS, wh)
    anchors = torch.tensor([cell for level in CELLS for cell in level])
    centred = torch.tensor(np.concatenate([-wh, wh], axis=1) / 2).float()
    best = box_iou(centred, anchors).amax(1)
    assert fit.mean_iou == pytest.approx(best.mean().item(), abs=1e-5)
    assert fit.reached == pytest.approx((best >= 0.5).float().mean().item(), abs=0.004)
    assert fit.sizes == (32, 64, 128, 256, 512)


@pytest.mark.parametrize("median", [9.0, 37.0, 100.0, 900.0])
def test_the_best_factor_is_found(median: float) -> None:
    now, best = anchor_fit(CELLS, boxes(median)), fitting_sizes(CELLS, boxes(median))
    assert best.mean_iou >= now.mean_iou
    assert best.reached > 0.9
    assert best.sizes[0] <= 1.5 * median
    assert best.sizes[4] >= median / 1.5
    assert best.sizes[0] >= 4


def test_boxes_are_resized_as_the_model_does(tmp_path: Path) -> None:
    data = open_dataset(write_shapes(tmp_path / "shapes", train=3, val=1, size=64), "train")
    wh, sizes = data.box_and_image_sizes()
    each = [data.target(i)["boxes"] for i in range(len(data))]
    assert np.array_equal(wh, torch.cat([b[:, 2:] - b[:, :2] for b in each]).numpy())
    assert (sizes == 64).all()
    assert len(sizes) == data.num_objects
    assert np.array_equal(boxes_in_training(data, Border(128, 1000)), wh * 2)
    assert np.array_equal(boxes_in_training(data, Border((32, 128), 96)), wh * 1.5)
    stretched = boxes_in_training(data, Border(fixed_size=(128, 32)))
    assert np.array_equal(stretched, wh * [0.5, 2])


def test_only_several_anchors_at_a_place_are_matched_by_iou() -> None:
    assert matched_by_iou(retinanet("resnet10t", 2).anchor_cells())
    assert not matched_by_iou(fcos("resnet10t", 2).anchor_cells())
    assert not matched_by_iou(None)


def test_the_line_compares_both() -> None:
    wh = boxes(12.0)
    line = fit_line(anchor_fit(CELLS, wh), fitting_sizes(CELLS, wh), wh)
    assert "anchors of 32 64 128 256 512 pixels: IoU 0.5 or more for" in line
    assert "whose median is 12 pixels" in line
    assert "--anchor-sizes auto" in line
