# SPDX-License-Identifier: BSD-3-Clause
"""The whole demo, with trainings of a few steps."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastdet import bench
from fastdet.models import MODELS
from fastdet.report import demo as demo_module
from fastdet.report.demo import MODEL_OPTIONS, OPERATOR_SUITES, TITLES, demo, recipe
from fastdet.training.options import TrainOptions


@pytest.mark.slow
def test_demo_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(model: str, data: Path, out: Path) -> TrainOptions:
        options = recipe(model, data, out)
        return replace(options, epochs=1, validate_every=1, fpn_channels=16)

    monkeypatch.setattr(demo_module, "recipe", short)
    monkeypatch.setattr(demo_module, "measure_ops", lambda out: None)
    for name, value in (("TRAIN_IMAGES", 8), ("VAL_IMAGES", 3), ("IMAGE_SIZE", 64)):
        monkeypatch.setattr(demo_module, name, value)
    for _ in range(2):
        report = demo(tmp_path / "demo")
        page = report.read_text(encoding="utf-8")
        assert page.count("data:image/webp") == 2 * 3 * 2
        assert "Not measured in this run." in page
        printed = capsys.readouterr().out
        for title in TITLES.values():
            assert f"{title}, by class" in printed
            assert title in page
        for loss in ("loss_box_reg", "classification"):
            assert f"</i>{loss}</span>" in page
    for model in TITLES:
        assert len(list((tmp_path / "demo" / model / "pictures").iterdir())) == 3


def test_files_that_are_not_of_a_demo_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"report\.html is not of a demo"):
        demo(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_measured_operators_are_suites() -> None:
    for suite in OPERATOR_SUITES:
        file, _, function = suite.partition("::")
        text = (bench.TREE / file).read_text()
        assert f"def {function or 'bench_'}" in text, suite


def test_every_model_is_in_the_demo() -> None:
    assert set(TITLES) == set(MODEL_OPTIONS) <= set(MODELS)
