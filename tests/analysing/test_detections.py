# SPDX-License-Identifier: BSD-3-Clause
"""COCO results files: read, written, and refused with one line that says what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdet.analysing.detections import read_found, write_results
from tests.analysing.problems import annotations_of, found_of, problem

ONE: dict[str, Any] = {"image_id": 1, "category_id": 10, "bbox": [1, 2, 3, 4], "score": 0.5}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    annotations, found = problem(0)
    write_results(tmp_path / "a.json", found, annotations)
    again, here = read_found(tmp_path / "a.json", annotations, masks=False)
    for name in ("image_index", "labels", "boxes_xywh", "scores"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert here.looked_at.all()
    assert here.known.all()
    ids = np.array(annotations.image_ids)[again.image_index]
    assert (np.diff(ids) >= 0).all()  # the order of COCO


def test_no_detections(tmp_path: Path) -> None:
    annotations, _ = problem(0)
    found, _ = read_found(written(tmp_path / "a.json", []), annotations, masks=False)
    assert len(found) == 0
    assert found.boxes_xywh.shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "expected COCO results, .* ground truth: give it as --data"),
        (3, "a list of detections .*; got 3"),
        ([ONE, 5], "row 1: expected image_id and .*, got 5"),
        ([{"image_id": 1, "score": 1}], "row 0: .* has no category_id and no bbox"),
        ([ONE, ONE | {"bbox": [1, 2, 3]}], r"row 1: .* bbox \[1, 2, 3\]"),
        ([ONE | {"score": "high"}], 'row 0: .* score "high"'),
        ([ONE, ONE | {"bbox": [1, 2, -3, 4]}], "row 1: expected a finite score and a bbox"),
        ([ONE | {"score": float("nan")}], "row 0: expected a finite score"),
        ([ONE, ONE | {"image_id": 77}], "row 1: expected the image ids of val.json, got 77: are"),
        ([ONE | {"image_id": [1]}], r"row 0: expected image_id .* got image_id \[1\]"),
        ([ONE | {"category_id": 1}], "row 0: expected the category ids of val.json, got 1: are"),
    ],
)
def test_what_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    annotations, _ = problem(0)
    with pytest.raises(ValueError, match=message):
        read_found(written(tmp_path / "a.json", content), annotations, masks=False)


def test_no_json_and_no_masks(tmp_path: Path) -> None:
    annotations, _ = problem(0)
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(ValueError, match=r"expected COCO results, .* got no JSON"):
        read_found(tmp_path / "a.json", annotations, masks=False)
    with pytest.raises(ValueError, match=r"row 0, .* image id 1 .*: expected a segmentation"):
        read_found(written(tmp_path / "a.json", [ONE]), annotations, masks=True)


def test_results_of_predict_are_matched_by_name(tmp_path: Path) -> None:
    annotations = annotations_of([(0, 1, 0, 0, 9, 9, 0)], 3, ["a", "b"], [30, 10, 20])
    names = {
        "images": [
            {"id": 1, "file_name": "2.jpg"},
            {"id": 2, "file_name": "images\\0.jpg"},
            {"id": 3, "file_name": "elsewhere.jpg"},
        ],
        "categories": [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}],
    }
    written(tmp_path / "images.json", names)
    rows = [ONE | {"image_id": image, "category_id": 1} for image in (1, 3, 2)]
    path = written(tmp_path / "a.json", rows)
    with pytest.warns(UserWarning, match="left out") as said:
        found, here = read_found(path, annotations, masks=False)
    left_out, order = (str(one.message) for one in said)
    assert (
        left_out == f"{path}: 1 of 3 pictures are not in val.json and are left out: elsewhere.jpg"
    )
    assert "its classes are in another order" in order
    assert here.looked_at.tolist() == [True, False, True]
    assert here.rows.tolist() == [0, 2]
    assert found.image_index.tolist() == [2, 0]
    assert found.labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (["0.jpg"], ["b", "c"], "c is only in .*images.json"),
        (["0.jpg"], ["b"], "a is only in val.json"),
        (["0.jpg"], ["a", "b", "a"], "expected classes of different names, got a twice"),
        (["x.jpg", "y.jpg"], ["a", "b"], "none of its 2 is among them, such as x.jpg"),
        ([], ["a", "b"], "none of its 0 is among them$"),
        (["0.jpg", "x/0.jpg"], ["a", "b"], "but 0.jpg and x/0.jpg are both 0.jpg"),
    ],
)
def test_names_of_other_data(
    images: list[str], classes: list[str], message: str, tmp_path: Path
) -> None:
    annotations = annotations_of([(0, 1, 0, 0, 9, 9, 0)], 3, ["a", "b"])
    listed = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
    }
    written(tmp_path / "images.json", listed)
    with pytest.raises(ValueError, match=message) as error:
        read_found(written(tmp_path / "a.json", []), annotations, masks=False)
    assert "\n" not in str(error.value)


def test_a_class_that_the_results_lack(tmp_path: Path) -> None:
    annotations = annotations_of([(0, 1, 0, 0, 9, 9, 0)], 1, ["a", "b"])
    listed = {"images": [{"id": 1, "file_name": "0.jpg"}], "categories": [{"id": 7, "name": "b"}]}
    written(tmp_path / "images.json", listed)
    path = written(tmp_path / "a.json", [ONE | {"category_id": 7}])
    found, here = read_found(path, annotations, False, drop_other_classes=True)
    assert found.labels.tolist() == [2]
    assert here.known.tolist() == [False, True]


def test_no_detections_at_all_sort() -> None:
    annotations = annotations_of([], 1, ["a"])
    assert found_of([], annotations).sorted(annotations).scores.tolist() == []
