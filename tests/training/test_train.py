# SPDX-License-Identifier: BSD-3-Clause
"""A training keeps its promises: one log row for a validation, whole checkpoints, exact resume."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdet.data import write_shapes
from fastdet.models import FasterRCNN, RetinaNet
from fastdet.training.detector_module import NonFiniteLossError, load_detector
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import TrainOptions
from fastdet.training.train import evaluate, train


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    folder = tmp_path_factory.mktemp("training")
    return TrainOptions(
        data=write_shapes(folder / "shapes", train=8, val=4, size=64),
        out=folder / "run",
        model="faster_rcnn",
        backbone="resnet18",
        epochs=2,
        batch_size=4,
        min_size=64,
        max_size=64,
        fpn_channels=16,
        seed=3,
    )


@pytest.fixture(scope="module")
def run(options: TrainOptions) -> Path:
    module = train(options)
    assert module.metrics is not None
    assert module.metrics.images == 4
    return options.out


def test_validation_logs_losses_and_ap_in_one_row(run: Path) -> None:
    rows = read_metrics(run / "metrics.csv")
    validations = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in validations] == [1, 3]
    assert all(
        {"val/AP", "val/AP50", "val/loss_classifier", "epoch"} <= set(r) for r in validations
    )
    for row in validations:
        parts = [value for name, value in row.items() if name.startswith("val/loss_")]
        assert len(parts) == 4
        assert row["val/loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2, 3]


def test_the_shapes_of_batches_are_counted(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = replace(options, model="retinanet", out=tmp_path, epochs=1, size_divisor=96)
    assert train(few).batch_shapes == {(4, 96, 96, 8): 2}
    assert "rows of ground truth: 1 in 2 steps; the commonest: 4x96x96x8 (2 steps)" in (
        capsys.readouterr().out
    )


def test_checkpoint_is_plain_data_and_enough(run: Path, options: TrainOptions) -> None:
    content = torch.load(run / "best.ckpt", weights_only=True)
    assert content["hyper_parameters"]["classes"][:2] == ["background", "circle"]
    module = load_detector(run / "last.ckpt")
    assert module.category_ids == [1, 2, 3, 4, 5, 6]
    assert not module.training
    last = [row for row in read_metrics(run / "metrics.csv") if "val/AP" in row][-1]
    again = evaluate(run / "last.ckpt", options.data)
    assert again.stats == pytest.approx({name: last[f"val/{name}"] for name in again.stats})


def test_validation_losses_are_means_over_images(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch_size_as_loss(self: RetinaNet, batch):
        return {"classification": torch.tensor(float(len(batch.images)))}, self.detect(batch)

    monkeypatch.setattr(RetinaNet, "losses_and_detections", batch_size_as_loss)
    train(replace(options, model="retinanet", out=tmp_path, epochs=1, batch_size=3))
    rows = read_metrics(tmp_path / "metrics.csv")
    # Four images in batches of three and one.
    assert rows[-1]["val/loss"] == rows[-1]["val/classification"] == (3 * 3 + 1 * 1) / 4


def test_nothing_but_the_results_is_left(run: Path) -> None:
    assert sorted(file.name for file in run.iterdir()) == ["best.ckpt", "last.ckpt", "metrics.csv"]


def test_a_finished_training_is_not_overwritten(run: Path, options: TrainOptions) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        train(options)


@pytest.mark.slow
def test_stop_at_a_loss_that_is_not_finite_then_resume_as_if_unbroken(
    run: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    honest = FasterRCNN.losses

    def poisoned(self: FasterRCNN, batch) -> dict[str, torch.Tensor]:
        losses = honest(self, batch)
        seen.append(batch.gt_counts.tolist())
        return {k: v * math.nan for k, v in losses.items()} if len(seen) == 4 else losses

    broken = replace(options, out=options.out.with_name("broken"))
    with monkeypatch.context() as patch:
        patch.setattr(FasterRCNN, "losses", poisoned)
        with pytest.raises(NonFiniteLossError, match=r"step 3 .*image ids.*\[\d, \d, \d, \d\]"):
            train(broken)
    kept = torch.load(broken.out / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(v.isfinite().all() for v in kept["state_dict"].values())

    train(replace(broken, resume=True))
    ours = torch.load(broken.out / "last.ckpt", weights_only=True)
    theirs = torch.load(run / "last.ckpt", weights_only=True)
    assert ours["global_step"] == theirs["global_step"] == 4
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    assert read_metrics(broken.out / "metrics.csv") == read_metrics(run / "metrics.csv")


def test_categories_that_differ_are_refused(
    run: Path, options: TrainOptions, tmp_path: Path
) -> None:
    content = json.loads((options.data / "val.json").read_text())
    for category in content["categories"]:
        category["id"] += 10
    for annotation in content["annotations"]:
        annotation["category_id"] += 10
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(options.data / "images")
    with pytest.raises(ValueError, match="category ids"):
        evaluate(run / "last.ckpt", tmp_path)


def test_unknown_model_is_refused(options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are: faster_rcnn, fcos, mask_rcnn, retinanet"):
        train(replace(options, model="yolo", out=tmp_path))


@pytest.mark.slow
def test_masks_are_learnt_logged_and_evaluated(options: TrainOptions, tmp_path: Path) -> None:
    numbers = {"mask_layers": [8], "rpn_post_nms_top_n_test": 50}
    module = train(replace(options, model="mask_rcnn", out=tmp_path, epochs=1), numbers)
    assert module.metrics is not None
    assert module.metrics.masks is not None
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    assert row["val/loss_mask"] > 0
    again = evaluate(tmp_path / "last.ckpt", options.data).masks
    assert again is not None
    assert again.stats == pytest.approx({name: row[f"val/segm_{name}"] for name in again.stats})
