# SPDX-License-Identifier: BSD-3-Clause
"""A file that is read in slices gives what it gives as a whole, and what Python's json gives."""

import json
import warnings
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from fastdet.data import coco_json
from fastdet.data.coco_file import read_coco_file
from tests.data.test_coco import CONTENT, TRIANGLE, annotation, content
from tests.data_sets import data_sets

UNUSUAL = [
    annotation(id=200.0, image_id=5.0),
    annotation(id=201, area=None),
    annotation(id=202, area=-1),
    annotation(id=203, iscrowd=True),
    annotation(id=204, iscrowd=None, bbox=[1, 2, 3, 4.5]),
    annotation(id=205, image_id=99),
    annotation(id=206, bbox=[1, 2, 3, "4"]),
    annotation(id=207, segmentation=None),
    annotation(id=208, segmentation=[[1, 2], TRIANGLE]),
    annotation(id=209, segmentation={"size": [30, 40], "counts": [600, 600]}),
    annotation(id=210, bbox=[10**400, 1, 1, 1]),
    annotation(id=211, bbox=[1, 1, 1e200, 1e200], area=None),
    annotation(id=212, bbox=[2**53 + 1, 1, 1, 1], area=2**60 + 1),
    annotation(id=213, category_id=None),
    annotation(id=214, image_id=True),
]
MIXED = [{"segmentation": [TRIANGLE], **one} for one in [*CONTENT["annotations"], *UNUSUAL]]


def read(path: Path, masks: bool):
    """Everything that is read, and the warnings in no order."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        columns = astuple(read_coco_file(path, masks))
    return columns, sorted(str(warning.message) for warning in caught)


def assert_same(one, other) -> None:
    assert one[1] == other[1]
    for a, b in zip(one[0], other[0], strict=True):
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("masks", [False, True])
def test_slices_and_json_give_the_same(tmp_path, monkeypatch, masks):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(annotations=MIXED)))
    whole = read(path, masks)  # record by record, since a record is unusual
    monkeypatch.setattr(coco_json, "SLICE", 1)  # most by column
    assert_same(read(path, masks), whole)
    path.write_text(json.dumps(content(annotations=MIXED, unknown=float("nan"))))
    assert_same(read(path, masks), whole)  # msgspec refuses NaN
    path.write_bytes(json.dumps(content(annotations=MIXED)).encode("utf-16"))
    assert_same(read(path, masks), whole)
    assert len(whole[1]) == (7 if masks else 5)  # kinds of mistakes


@pytest.mark.parametrize("folder", data_sets("bccd", "coco_by", "nuclei", "trash10"))
@pytest.mark.parametrize("masks", [False, True])
def test_whole_data_sets_give_what_json_gives(folder, tmp_path, masks):
    path = tmp_path / "val.json"
    path.write_text((folder / "val.json").read_text())
    usual = read(path, masks)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unknown": float("nan")}))
    assert_same(read(path, masks), usual)


@pytest.mark.parametrize("repeat", [3, 10, 0, 12])
def test_an_id_that_another_slice_has_too(tmp_path, monkeypatch, repeat):
    monkeypatch.setattr(coco_json, "SLICE", 1)
    path = tmp_path / "a.json"
    listed = [*CONTENT["annotations"], annotation(id=repeat)]
    for further in ([], [{"id": 4}]):  # the earlier mistake is named
        path.write_text(json.dumps(content(annotations=listed + further)))
        with pytest.raises(ValueError, match=f"annotation id {repeat} occurs more than once"):
            read_coco_file(path)


def test_the_position_of_an_annotation_is_that_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_json, "SLICE", 2)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(annotations=[*CONTENT["annotations"], "x"])))
    with pytest.raises(ValueError, match="annotation number 4 is not an object"):
        read_coco_file(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b'{"images": [], "categories": [], "annotations": ' + b"[" * 100_000, "nested too deep"),
        (b'{"images": [], "annotations": [], "info": "\xff"}', "not a JSON file: 'utf-8' codec"),
        (b'{"images": [], "annotations": [{"x": "\xff"}]}', "not a JSON file: 'utf-8' codec"),
        (b'{"images": [], "annotations": [{"x": "\xc3', "not a JSON file: 'utf-8' codec"),
        (b'{"images": [], "annotations": [{"x": "\1"}]}', "not a JSON file: Invalid control char"),
        (b'{"images": [], "annotations": [01]}', "not a JSON file: Expecting ',' delimiter"),
        (b'"annotations"', "a COCO file is a JSON object, this is a str"),
    ],
)
def test_hostile_texts(tmp_path, text, match):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=match) as error:
        read_coco_file(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(error.value)


@pytest.mark.parametrize("identity", [2**63, -(2**63) - 1, 1e300])
def test_ids_of_more_than_64_bits_are_refused(tmp_path, identity):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(annotations=[annotation(id=identity)])))
    with pytest.raises(
        ValueError, match=rf"annotation id {int(identity)}: an id must be an integer"
    ):
        read_coco_file(path)
