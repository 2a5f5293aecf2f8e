# SPDX-License-Identifier: BSD-3-Clause
"""COCO's numbers of an analysis equal pycocotools'; so does the recall of proposals."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastdet.analysing.coco import PROPOSALS, coco_numbers, proposal_recall
from fastdet.analysing.detections import read_found, write_results
from fastdet.data.opening import read_split
from tests.analysing.test_matching import shifted
from tests.data_sets import data_sets


def with_nan(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, np.nan, values)


@pytest.mark.parametrize("folder", data_sets("coco_by"))
def test_numbers_and_recall_equal_pycocotools(folder: Path, tmp_path: Path) -> None:
    annotations = read_split(folder, "val")
    results = tmp_path / "found.json"
    write_results(results, shifted(annotations, 1), annotations)
    found, _ = read_found(results, annotations, masks=False)
    numbers = coco_numbers(annotations, found, "bbox", 100, 0.75)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations.path))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        blind = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        blind.params.useCats = 0
        blind.params.maxDets = list(PROPOSALS)
        blind.evaluate()
        blind.accumulate()
    assert list(numbers.stats.values()) == evaluation.stats.tolist()
    precision = with_nan(evaluation.eval["precision"])[..., -1]
    np.testing.assert_array_equal(numbers.AP, precision[..., 0].mean(axis=(0, 1)))
    np.testing.assert_array_equal(numbers.AP75, precision[5, ..., 0].mean(axis=0))
    np.testing.assert_array_equal(numbers.AP_by_size, precision[..., 1:].mean(axis=(0, 1)))
    np.testing.assert_array_equal(numbers.precisions, precision[5, ..., 0].T)
    recall = with_nan(evaluation.eval["recall"])[..., 0, -1].mean(axis=0)
    np.testing.assert_array_equal(numbers.AR, recall)
    assert np.isnan(numbers.AP).any()  # both data sets have a class that is absent
    theirs = with_nan(blind.eval["recall"])[:, 0].mean(axis=0).T
    np.testing.assert_allclose(proposal_recall(annotations, found), theirs, atol=1e-12)
