# SPDX-License-Identifier: BSD-3-Clause
"""Matches equal the obvious definition and pycocotools, for boxes and masks."""

import contextlib
import io
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import fastdet.analysing.matching as matching
from fastdet.analysing.detections import Found, read_found, write_results
from fastdet.analysing.matching import Matches, match, overlapping
from fastdet.data.annotations import Annotations
from fastdet.data.opening import read_split
from tests.analysing.problems import annotations_of, found_of, problem
from tests.analysing.reference import matches_of
from tests.data_sets import data_sets


def matched(
    annotations: Annotations, found: Found, threshold: float, masks: bool = False
) -> Matches:
    return match(annotations, found, overlapping(annotations, found, 0.1, masks), threshold)


def pycocotools_matches(
    file: Path, results: Path, kind: Literal["bbox", "segm"], threshold: float
) -> tuple[dict[int, int], set[int]]:
    """Detection number (from 0, in the file) -> annotation id; and the ignored numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
        evaluation.params.iouThrs = np.array([threshold])
        evaluation.evaluate()
    found_by, ignored = {}, set()
    of_all = evaluation.params.areaRng[0]
    for image in evaluation.evalImgs:
        if image is None or image["aRng"] != of_all:
            continue
        rows = zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
        for detection, annotation, is_ignored in rows:
            if is_ignored:
                ignored.add(detection - 1)
            elif annotation:
                found_by[detection - 1] = int(annotation)
    return found_by, ignored


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_matches_equal_the_definition(threshold: float, ties: bool) -> None:
    for seed in range(40):
        annotations, found = problem(seed, ties=ties)
        matches = matched(annotations, found, threshold)
        found_by, ignored = matches_of(annotations, found, threshold)
        rows = np.flatnonzero(matches.objects >= 0)
        assert dict(zip(rows.tolist(), matches.objects[rows].tolist(), strict=True)) == found_by
        assert set(np.flatnonzero(matches.ignored).tolist()) == ignored
        objects = np.flatnonzero(matches.detections >= 0)
        assert (matches.objects[matches.detections[objects]] == objects).all()
        assert (matches.ious[rows] >= threshold).all()


def test_the_size_of_the_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, found = problem(3)
    whole = overlapping(annotations, found, 0.1, masks=False)
    for size in (1, 5, 37):
        monkeypatch.setattr(matching, "PAIRS", size)
        parts = overlapping(annotations, found, 0.1, masks=False)
        assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_nothing_to_match() -> None:
    nothing = annotations_of([], 2, ["a"])
    some = found_of([(0, 1, 0, 0, 5, 5, 0.5)], nothing)
    assert matched(nothing, some, 0.5).objects.tolist() == [-1]
    one = annotations_of([(0, 1, 0, 0, 5, 5, 0)], 2, ["a"])
    assert matched(one, found_of([], one), 0.5).detections.tolist() == [-1]
    flat = found_of([(0, 1, 0, 0, 0, 0, 0.5)], one)  # no area
    assert matched(one, flat, 0.5).objects.tolist() == [-1]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("folder", data_sets("coco_by"))
def test_matches_equal_pycocotools(
    folder: Path, kind: Literal["bbox", "segm"], tmp_path: Path
) -> None:
    masks = kind == "segm"
    annotations = read_split(folder, "val", masks)
    if masks and not annotations.masks:
        pytest.skip("no masks")
    found = shifted(annotations, 0)
    results = tmp_path / "found.json"
    write_results(results, found, annotations)
    again, here = read_found(results, annotations, masks)
    assert here.looked_at.all()
    matches = matched(annotations, again, 0.5, masks)
    found_by, ignored = pycocotools_matches(annotations.path, results, kind, 0.5)
    rows = np.flatnonzero(matches.objects >= 0).tolist()
    ids = annotations.annotation_ids[matches.objects[rows]].tolist()
    assert dict(zip(rows, ids, strict=True)) == found_by
    assert set(np.flatnonzero(matches.ignored).tolist()) == ignored
    assert len(found_by) > 10
    assert json.loads(results.read_text())[0].keys() >= {"image_id", "category_id", "bbox"}


def shifted(annotations: Annotations, seed: int) -> Found:
    """Detections near the annotations, crowds too, some twice or of another class."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(
        np.arange(len(annotations.labels)), rng.integers(0, 3, len(annotations.labels))
    )
    boxes = annotations.boxes_xywh[rows]
    boxes = boxes + rng.normal(0, 0.08, boxes.shape) * np.tile(boxes[:, 2:], 2)
    labels = annotations.labels[rows]
    other = rng.random(len(rows)) < 0.1
    labels = np.where(other, rng.integers(1, len(annotations.names) + 1, len(rows)), labels)
    masks = None if annotations.masks is None else [annotations.masks[row] for row in rows]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    scores = rng.random(len(rows)).round(2)
    path = Path("found.json")
    return Found(path, annotations.image_index[rows], labels, boxes, scores, masks).sorted(
        annotations
    )
