# SPDX-License-Identifier: BSD-3-Clause
"""COCO results files: read, written, and refused with one line that says what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdet.analysing.detections import read_results, write_results
from tests.analysing.problems import annotations_of, found_of, problem

ONE: dict[str, Any] = {"image_id": 1, "category_id": 10, "bbox": [1, 2, 3, 4], "score": 0.5}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    annotations, found = problem(0)
    write_results(tmp_path / "a.json", found, annotations)
    again, looked_at = read_results(tmp_path / "a.json", annotations, masks=False)
    for name in ("image_index", "labels", "boxes_xywh", "scores"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert looked_at.all()
    ids = np.array(annotations.image_ids)[again.image_index]
    assert (np.diff(ids) >= 0).all()  # the order of COCO


def test_no_detections(tmp_path: Path) -> None:
    annotations, _ = problem(0)
    found, _ = read_results(written(tmp_path / "a.json", []), annotations, masks=False)
    assert len(found) == 0
    assert found.boxes_xywh.shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "expected COCO results, .* ground truth: give it as --data"),
        (3, "a list of detections, got int"),
        ([ONE, 5], "row 1: expected image_id, .*, got int"),
        ([{"image_id": 1, "score": 1}], "row 0: .* has no category_id and no bbox"),
        ([ONE, ONE | {"bbox": [1, 2, 3]}], r"row 1: .* got bbox \[1, 2, 3\]"),
        ([ONE | {"score": "high"}], "row 0: .* score high"),
        ([ONE, ONE | {"bbox": [1, 2, -3, 4]}], "row 1: expected a finite score and a bbox"),
        ([ONE | {"score": float("nan")}], "row 0: expected a finite score"),
        ([ONE, ONE | {"image_id": 77}], "row 1: expected image_id of val.json, got 77: are"),
        ([ONE | {"image_id": [1]}], r"row 0: expected image_id of val.json, got \[1\]"),
        ([ONE | {"category_id": 1}], "row 0: expected category_id of val.json, got 1"),
    ],
)
def test_what_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    annotations, _ = problem(0)
    with pytest.raises(ValueError, match=message):
        read_results(written(tmp_path / "a.json", content), annotations, masks=False)


def test_no_json_and_no_masks(tmp_path: Path) -> None:
    annotations, _ = problem(0)
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(ValueError, match="expected COCO results, got no JSON"):
        read_results(tmp_path / "a.json", annotations, masks=False)
    with pytest.raises(ValueError, match="row 0: iou_type segm expects a segmentation"):
        read_results(written(tmp_path / "a.json", [ONE]), annotations, masks=True)


def test_results_of_predict_are_matched_by_name(tmp_path: Path) -> None:
    annotations = annotations_of([(0, 1, 0, 0, 9, 9, 0)], 3, ["a", "b"], [30, 10, 20])
    names = {
        "images": [
            {"id": 1, "file_name": "2.jpg"},
            {"id": 2, "file_name": "images/0.jpg"},
            {"id": 3, "file_name": "elsewhere.jpg"},
        ],
        "categories": [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}],
    }
    written(tmp_path / "images.json", names)
    rows = [ONE | {"image_id": image, "category_id": 1} for image in (1, 2, 3)]
    path = written(tmp_path / "a.json", rows)
    found, looked_at = read_results(path, annotations, masks=False)
    assert looked_at.tolist() == [True, False, True]
    assert found.image_index.tolist() == [2, 0]
    assert found.labels.tolist() == [2, 2]
    names["categories"][0]["name"] = "c"
    written(tmp_path / "images.json", names)
    with pytest.raises(ValueError, match=r"images.json has the class c; val.json has a, b"):
        read_results(path, annotations, masks=False)
    written(tmp_path / "images.json", {**names, "categories": [], "images": names["images"][2:]})
    with pytest.raises(ValueError, match="none of its 1 pictures is in"):
        read_results(path, annotations, masks=False)
    assert found_of([], annotations).sorted(annotations).scores.tolist() == []
