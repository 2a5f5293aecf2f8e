# SPDX-License-Identifier: BSD-3-Clause
"""A training keeps its promises: one log row for a validation, whole checkpoints, exact resume."""

import json
import math
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdet.data import write_shapes
from fastdet.models import MODELS, FasterRCNN, RetinaNet
from fastdet.training.detector_module import NonFiniteLossError, load_detector
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import PictureOptions, TrainOptions
from fastdet.training.train import _is_slow, evaluate, train

FILES = ["best.ckpt", "last.ckpt", "metrics.csv", "options.yaml", "run.yaml"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    folder = tmp_path_factory.mktemp("training")
    return TrainOptions(
        data=write_shapes(folder / "shapes", train=8, val=4, size=64),
        out=folder / "run",
        model="faster_rcnn",
        backbone="test_resnet",
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert sorted(file.name for file in run.iterdir()) == FILES


def test_a_finished_training_is_not_overwritten(run: Path, options: TrainOptions) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        train(options)


def test_files_that_are_not_of_a_training_are_not_overwritten(
    options: TrainOptions, tmp_path: Path
) -> None:
    for name, message in (
        ("best.ckpt", "give --resume"),
        ("metrics.csv", "not of a training"),
        ("options.yaml", "not of a training"),
        ("run.yaml", "not of a training"),
        ("report.html", "exists"),
    ):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(FileExistsError, match=message):
            train(replace(options, out=out))
        assert (out / name).read_text() == "mine"


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


@pytest.mark.slow
@pytest.mark.parametrize("paths_in_checkpoint", ["names", "absolute"])
def test_a_copied_run_keeps_its_best_score(
    run: Path, options: TrainOptions, tmp_path: Path, paths_in_checkpoint: str
) -> None:
    """Also one whose checkpoint has absolute paths, as older ones do."""
    shutil.copytree(run, tmp_path / "copy")
    last = tmp_path / "copy" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert str(run) not in repr(content["callbacks"])
    state = next(s for key, s in content["callbacks"].items() if "val/AP" in key)
    best = torch.tensor(0.9)  # more than this model ever reaches
    path = "best.ckpt" if paths_in_checkpoint == "names" else "/gone/run/best.ckpt"
    state |= {"best_model_score": best, "kth_value": best, "best_k_models": {path: best}}
    state |= {"best_model_path": path, "kth_best_model_path": path}
    state["dirpath"] = str(Path(path).parent)
    torch.save(content, last)
    before = (tmp_path / "copy" / "best.ckpt").read_bytes()
    train(replace(options, out=tmp_path / "copy", epochs=3, resume=True))
    assert (tmp_path / "copy" / "best.ckpt").read_bytes() == before
    assert torch.load(last, weights_only=True)["epoch"] == 2

    (tmp_path / "copy" / "best.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"best\.ckpt is missing; the best score starts again"):
        train(replace(options, out=tmp_path / "copy", epochs=4, resume=True))
    assert torch.load(tmp_path / "copy" / "best.ckpt", weights_only=True)["epoch"] == 3


@pytest.mark.slow
def test_a_second_training_in_the_folder_is_refused(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first goes on and leaves no lock; a training that fails leaves none either."""
    first = replace(options, model="retinanet", out=tmp_path, epochs=1)
    refused = []
    honest = RetinaNet.losses

    def second_at_the_same_time(self: RetinaNet, batch) -> dict[str, torch.Tensor]:
        with pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on .+ trains there"):
            train(first)
        refused.append(1)
        return honest(self, batch)

    monkeypatch.setattr(RetinaNet, "losses", second_at_the_same_time)
    train(first)
    assert len(refused) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    with pytest.raises(ValueError, match=r"model: .* was trained with retinanet, got fcos"):
        train(replace(first, model="fcos", resume=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES


@pytest.mark.slow
def test_what_a_killed_training_left_is_removed(options: TrainOptions, tmp_path: Path) -> None:
    for name in ("best.ckpt", "last.ckpt", "metrics.csv"):
        (tmp_path / f".{10**9}-{name}").write_bytes(b"half")
    (tmp_path / "training.lock").write_text(f"{10**9} {socket.gethostname()}\n")
    train(replace(options, model="retinanet", out=tmp_path, epochs=1))
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES


def with_categories(data: Path, copy: Path, change: Callable[[str], int | str]) -> Path:
    """A copy of a data set whose val.json has `change(name)` as id or name of each category."""
    shutil.copytree(data, copy)
    content = json.loads((copy / "val.json").read_text())
    ids = {}
    for category in content["categories"]:
        old, new = category["id"], change(category["name"])
        category["name" if isinstance(new, str) else "id"] = new
        ids[old] = category["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    (copy / "val.json").write_text(json.dumps(content))
    return copy


@pytest.mark.slow
def test_categories_are_matched_by_name(run: Path, options: TrainOptions, tmp_path: Path) -> None:
    """Training, evaluation and resuming give the same numbers with val.json's ids reversed."""
    names = load_detector(run / "last.ckpt").classes
    data = with_categories(options.data, tmp_path / "data", lambda name: 90 - names.index(name))
    expected = evaluate(run / "last.ckpt", options.data)
    with pytest.warns(UserWarning, match=r"val\.json: its classes are in another order"):
        found = evaluate(run / "last.ckpt", data)
    assert found.stats == pytest.approx(expected.stats)  # means over classes in another order
    assert {row.name: row for row in found.per_class} == {
        row.name: row for row in expected.per_class
    }
    with pytest.warns(UserWarning, match=r"val\.json: its classes are in another order"):
        module = train(replace(options, data=data, out=tmp_path / "run"))
    assert module.metrics is not None
    assert module.metrics.stats == pytest.approx(expected.stats)
    assert module.category_ids == [1, 2, 3, 4, 5, 6]
    content = json.loads((data / "train.json").read_text())
    for category in content["categories"]:
        category["id"] = 90 - names.index(category["name"])
    content["annotations"] = []
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train\.json: no object to learn from"):
        train(replace(options, data=data, out=tmp_path / "run", resume=True))


def test_other_classes_are_refused_or_dropped(
    run: Path, options: TrainOptions, tmp_path: Path
) -> None:
    renamed = with_categories(
        options.data, tmp_path / "a", lambda name: "moon" if name == "star" else name
    )
    with pytest.raises(ValueError, match=r"moon is only in .*val\.json and star is only in .*tr"):
        train(replace(options, data=renamed, out=tmp_path / "run"))
    with pytest.raises(ValueError, match=r"moon is only in .*val\.json and star is .*last\.ckpt"):
        evaluate(run / "last.ckpt", renamed)

    content = json.loads((options.data / "val.json").read_text())
    content["categories"].append({"id": 70, "name": "moon"})
    content["annotations"].append({**content["annotations"][0], "id": 9999, "category_id": 70})
    shutil.copytree(options.data, tmp_path / "b")
    (tmp_path / "b" / "val.json").write_text(json.dumps(content))
    expected = evaluate(run / "last.ckpt", options.data)
    with pytest.raises(ValueError, match=r"moon is only in .*val\.json"):
        evaluate(run / "last.ckpt", tmp_path / "b")
    found = evaluate(run / "last.ckpt", tmp_path / "b", drop_other_classes=True)
    assert found.stats == expected.stats
    assert [row.name for row in found.per_class] == [row.name for row in expected.per_class]


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "every"), [(1, 3), (3, 2)])
def test_the_last_epoch_is_validated_and_saved(
    options: TrainOptions, tmp_path: Path, epochs: int, every: int
) -> None:
    few = {"model": "retinanet", "out": tmp_path, "epochs": epochs, "validate_every": every}
    module = train(replace(options, **few))
    assert module.metrics is not None
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if "val/AP" in row]
    assert [row["epoch"] for row in rows] == [*range(every - 1, epochs - 1, every), epochs - 1]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == epochs - 1
    assert (tmp_path / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: expected a number from 1 on, got 0"),
        ({"batch_size": 0}, "batch_size: expected a number from 1 on, got 0"),
        ({"validate_every": -1}, "validate_every: expected"),
        ({"fpn_channels": 0}, "fpn_channels: expected"),
        ({"pictures": PictureOptions(bit_depth=0)}, "bit_depth: expected"),
        ({"pictures": PictureOptions(max_pixels=0)}, "max_pixels: expected"),
        ({"lr": math.nan}, "lr: expected a finite number above 0, got nan"),
        ({"lr": math.inf}, "lr: expected"),
        ({"lr": 0.0}, "lr: expected"),
        ({"workers": -1}, "workers: expected 0 or more, got -1"),
        ({"precision": "fp16"}, "precision: expected 32-true or bf16-mixed or 16-mixed, got fp16"),
    ],
)
def test_options_out_of_range_are_refused(
    options: TrainOptions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(replace(options, **changes))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_images_is_refused(
    options: TrainOptions, tmp_path: Path, split: str
) -> None:
    shutil.copytree(options.data, tmp_path / "data")
    file = tmp_path / "data" / f"{split}.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "images": [], "annotations": []}))
    with pytest.raises(ValueError, match=rf"{split}\.json: (expected images|no object)"):
        train(replace(options, data=tmp_path / "data", out=tmp_path / "run"))


def test_mask_rcnn_needs_masks(options: TrainOptions, tmp_path: Path) -> None:
    shutil.copytree(options.data, tmp_path / "data")
    file = tmp_path / "data" / "train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    file.write_text(json.dumps(content))
    masks = replace(options, model="mask_rcnn", data=tmp_path / "data", out=tmp_path / "run")
    with (
        pytest.warns(UserWarning, match="skipped: no segmentation"),
        pytest.raises(ValueError, match=r"train\.json: no object with a mask to learn from"),
    ):
        train(masks)


def test_unknown_model_is_refused(options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there are: {', '.join(MODELS)}"):
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


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_that_is_slow_is_said(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdet.training.train.has_fast_bfloat16", lambda: fast)
    options = TrainOptions(data=Path("data"), out=Path("out"), device="cpu")
    assert not _is_slow(options)
    assert _is_slow(replace(options, precision="bf16-mixed")) is not fast
