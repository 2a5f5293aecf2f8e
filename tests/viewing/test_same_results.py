# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet eval`, `analyse` and `view` agree on which pictures and classes of results count."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastdet.analysing.errors import KINDS
from fastdet.cli import main
from fastdet.predicting.evaluating import evaluate_results
from fastdet.viewing.collection import open_collection
from fastdet.viewing.filtering import EVERY, Filter, select
from tests.data_sets import SAMPLE
from tests.viewing.made_up import make_up


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Of ten pictures of the split under other ids, one of elsewhere, and all classes but one."""
    content = json.loads((SAMPLE / "val.json").read_text())
    folder = tmp_path / "found"
    folder.mkdir()
    rows = json.loads(make_up(SAMPLE / "val.json", folder / "detections.json", 3).read_text())
    gone = content["categories"].pop(0)["id"]
    seen = {image["id"] for image in content["images"][3:13]}
    images = [
        {**image, "id": 5 * image["id"], "file_name": f"photos/{image['file_name']}"}
        for image in content["images"]
        if image["id"] in seen
    ]
    images.append({"id": 1, "file_name": "elsewhere.jpg", "width": 9, "height": 9})
    rows = [
        {**row, "image_id": 5 * row["image_id"]}
        for row in rows
        if row["image_id"] in seen and row["category_id"] != gone
    ]
    rows.append({**rows[0], "image_id": 1, "score": 1.0})
    (folder / "images.json").write_text(
        json.dumps({"images": images, "categories": content["categories"]})
    )
    (folder / "detections.json").write_text(json.dumps(rows))
    return folder / "detections.json"


def test_the_same_pictures_and_classes_count(results: Path, tmp_path: Path) -> None:
    left_out = "1 of 11 pictures are not in .*val.json and are left out: elsewhere.jpg"
    with pytest.warns(UserWarning, match=left_out):
        metrics = evaluate_results(results, SAMPLE, drop_other_classes=True)
    command = f"analyse {results} --data {SAMPLE} --out {tmp_path}/out --drawn 0 --resamplings 0"
    with pytest.warns(UserWarning, match=left_out):
        main([*command.split(), "--drop-other-classes"])
    with pytest.warns(UserWarning, match=left_out):
        collection = open_collection(SAMPLE, "val", [results])
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    (side,) = analysis["sides"]
    assert metrics.images == analysis["images"] == 10
    assert side["stats"] == pytest.approx(metrics.stats, abs=1e-6)  # as written
    assert metrics.stats["AP"] > 0.1
    counts = select(collection, Filter(scores=(EVERY,))).counts
    shown = {kind: counts[kind][kind == "missed"] for kind in KINDS}
    assert shown == {kind: side["errors"][kind] for kind in KINDS}
    assert min(shown["missed"], shown["background"]) > 0
    kinds = collection.sides[0].object_kinds(collection.annotations, -np.inf)
    assert sum(kinds >= -1) == analysis["objects"]


def test_a_class_that_the_results_lack_is_refused(
    results: Path, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    for command in (
        f"eval --results {results} --data {SAMPLE}",
        f"analyse {results} --data {SAMPLE} --out {tmp_path}/out",
    ):
        assert "is only in" in refused(command.split())
