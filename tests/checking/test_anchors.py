# SPDX-License-Identifier: BSD-3-Clause
"""The reach of the anchors is that of all anchors, made by the detector's own function."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdet.checking.anchors import best_iou, grids_of, has_location, network_boxes
from fastdet.checking.check import CheckOptions
from fastdet.models import MODELS
from fastdet.models.anchors import pyramid_anchors
from fastdet.models.backbones import feature_maps
from fastdet.models.border import Border
from fastdet.ops import box_iou
from tests.checking.planted import DataSet, annotation

QUERIES = ("d_fine", "deformable_detr", "detr", "rt_detr")  # families without either


def test_best_iou_is_that_with_every_anchor() -> None:
    model, grids = grids_of("faster_rcnn", 200, 333)
    rng = np.random.default_rng(0)
    for height, width in ((192, 320), (224, 160), (352, 224)):
        low = rng.uniform(0, [width * 0.9, height * 0.9], (300, 2))
        high = low + rng.uniform(1, 1 + (np.array([width, height]) - low), (300, 2))
        boxes = np.concatenate([low, high], axis=1)
        images = torch.empty(1, 3, height, width)
        backbone = model.get_submodule("backbone")
        maps = feature_maps(backbone(images.to("meta")))
        features = [torch.empty(1, 1, *level.shape[2:]) for level in maps]
        cells = model.anchor_cells()
        assert cells is not None
        anchors = pyramid_anchors(images, features, cells).double()
        expected = box_iou(torch.from_numpy(boxes), anchors).amax(dim=1).numpy()
        found = best_iou(boxes, np.tile([width, height], (300, 1)), grids)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("family", MODELS)
def test_every_family_has_anchors_or_locations(family: str) -> None:
    if family in QUERIES:
        with pytest.raises(ValueError, match=f"detector with anchors or locations, got {family}"):
            grids_of(family, 800, 1333)
        return
    model, grids = grids_of(family, 800, 1333)
    assert len(grids) == 5
    assert all(parameter.is_meta for parameter in model.parameters())  # no weights were made
    one_square = {"atss", "fcos", "tood", "vfnet"}
    assert {len(grid.cells) for grid in grids} == (
        {1} if family in one_square else {9} if family == "retinanet" else {3}
    )


def test_boxes_are_scaled_as_the_border_scales_them() -> None:
    sizes = np.array([[640, 480], [427, 640], [1024, 1024], [3000, 100], [64, 64], [500, 375]])
    border = Border(800, 1333)
    corners = np.tile([1.0, 2, 30, 40], (len(sizes), 1))
    seen, padded = network_boxes(corners, sizes, border)
    for (width, height), box, size in zip(sizes.tolist(), seen, padded.tolist(), strict=True):
        target = {"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.ones(1).long()}
        batch = border.pad([torch.zeros(3, height, width)], [target], num_classes=2)
        np.testing.assert_allclose(batch.gt_boxes[0, 0].numpy(), box, rtol=1e-6)
        assert [batch.images.shape[3], batch.images.shape[2]] == size


def test_a_location_inside_a_box() -> None:
    _, grids = grids_of("fcos", 64, 64)
    stride = grids[0].stride
    assert stride == 8
    boxes = np.array([[7.9, 15.5, 8.1, 16.5], [9, 9, 15, 15], [9, 9, 17, 15], [9, 9, 17, 17.0]])
    at_the_end = [[60, 0, 64, 4.0]]  # the last location is at 56
    boxes = np.concatenate([boxes, at_the_end])
    inside = has_location(boxes, np.tile([64, 64], (5, 1)), grids[0])
    assert inside.tolist() == [1, 0, 0, 1, 0]


def test_objects_that_are_too_small_for_the_anchors(tmp_path: Path) -> None:
    data = DataSet(tmp_path / "data")
    data.plant(*(annotation(900 + i, 1 + i % 4, [9 + 5 * i, 40, 3, 3.5]) for i in range(4)))
    options = CheckOptions(model="faster_rcnn", min_size=120, max_size=160)
    report = data.check(options)
    found = {f.name: f for f in report.findings if f.split == "train"}
    places = {spot.annotation_id for spot in found["anchors-miss-objects"].places}
    assert places == {900, 901, 902, 903}
    train, val = report.reaches
    rows = {(row.kind, row.group): row for row in train.rows}
    assert rows["all", "all"].objects == 12
    assert rows["all", "all"].at_50 == pytest.approx(8 / 12)
    assert rows["size", "small"].at_50 == 0
    assert rows["size", "small"].median_size == pytest.approx((3 * 3.5) ** 0.5)
    assert rows["category", "dog"].objects == 4
    assert val.rows[0].at_50 == 1.0
    assert val.has_anchors

    points = data.check(CheckOptions(model="fcos", min_size=120, max_size=160))
    assert not points.reaches[0].has_anchors
    assert points.reaches[0].strides == [8, 16, 32, 64, 128]
    missed = [f for f in points.findings if f.name == "points-miss-objects"]
    assert {spot.annotation_id for spot in missed[0].places} <= places
    larger = data.check(CheckOptions(model="fcos", min_size=480, max_size=640))
    assert [f.name for f in larger.findings] == []
