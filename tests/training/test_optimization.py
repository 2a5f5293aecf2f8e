# SPDX-License-Identifier: BSD-3-Clause
"""The options of a training that change how the weights learn, from the command line."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from fastdet.cli import main
from fastdet.data import write_shapes
from fastdet.training import averaging
from fastdet.training.detector_module import DetectorModule, load_detector
from fastdet.training.kept_metrics import kept_metrics
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import PRESETS, TrainOptions
from fastdet.training.train import evaluate


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=3, size=64)


def run(shapes: Path, out: Path, options: str = "", epochs: int = 1, batch_size: int = 4) -> Path:
    main(
        f"train --data {shapes} --out {out} --model retinanet --backbone test_resnet --min-size 64 "
        f"--max-size 64 --fpn-channels 8 --epochs {epochs} --batch-size {batch_size} --workers 0 "
        f"--device cpu {options}".split()
    )
    return out


def content(out: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(out / name, weights_only=True)


@pytest.mark.slow
def test_the_options_reach_the_optimiser(shapes: Path, tmp_path: Path, capsys) -> None:
    options = (
        "--optimizer sgd --momentum 0.7 --weight-decay 0.01 --schedule step --milestones 0.5 "
        "--gamma 0.5 --warmup-steps 0 --lr 0.1 --lr-for-batch 16 --backbone-lr 0.5 --clip 1 "
        "--layer-decay 0.9 --decay-norms"
    )
    saved = content(run(shapes, tmp_path, options))
    (state,) = saved["optimizer_states"]
    groups = state["param_groups"]
    heads = next(g for g in groups if g["initial_lr"] == pytest.approx(0.1 * 4 / 16))
    assert (heads["momentum"], heads["weight_decay"]) == (0.7, 0.01)
    assert heads["lr"] == pytest.approx(heads["initial_lr"] * 0.5)  # after the milestone
    first = min(group["initial_lr"] for group in groups)
    assert first == pytest.approx(0.1 * 4 / 16 * 0.5 * 0.9**5)
    assert "4 images a step, sgd, learning rate 0.025, 1 epochs, on the CPU" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_accumulated_batches_are_one_step(shapes: Path, tmp_path: Path) -> None:
    """With the sum of gradients, not of steps; the learning rate sees all images of a step."""
    out = run(shapes, tmp_path, "--accumulate 2 --lr-for-batch 4 --lr 0.001", batch_size=2)
    saved = content(out)
    assert saved["global_step"] == 2
    assert saved["hyper_parameters"]["lr"] == pytest.approx(0.001)
    assert [row["step"] for row in read_metrics(out / "metrics.csv") if "val/AP" in row] == [1]


@pytest.mark.slow
def test_the_average_is_validated_kept_and_resumed(shapes: Path, tmp_path: Path) -> None:
    whole = run(shapes, tmp_path / "whole", "--ema 0.5", epochs=2)
    kept = kept_metrics(whole / "last.ckpt")
    assert kept is not None
    assert evaluate(whole / "last.ckpt", shapes).stats == kept[0].stats
    saved = content(whole)
    assert any(
        not torch.equal(value, saved["current_model_state"][name])
        for name, value in saved["state_dict"].items()
    )
    part = run(shapes, tmp_path / "part", "--ema 0.5 --schedule constant", epochs=1)
    run(shapes, tmp_path / "part", "--ema 0.5 --schedule constant --resume", epochs=2)
    once = content(run(shapes, tmp_path / "once", "--ema 0.5 --schedule constant", epochs=2))
    again = content(part)
    for state in ("state_dict", "current_model_state"):
        for name, value in once[state].items():
            assert torch.equal(again[state][name], value), name


def test_the_decay_of_the_average_rises() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 100.0)
    callback = averaging.MovingAverage(0.9)
    mean = AveragedModel(model, **callback._kwargs)
    expected = 100.0
    for step in range(200):
        torch.nn.init.constant_(model.weight, float(step))
        mean.update_parameters(model)
        if step == 0:
            expected = 0.0  # the first one is copied
            continue
        share = min(0.9, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * step
        assert mean.module.weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_early_stopping(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aps = iter([0.2, 0.5, 0.4, 0.3, 0.6])
    honest = DetectorModule.log_dict

    def log(self, values, **options) -> None:
        if "val/AP" in values:
            values = {**values, "val/AP": next(aps)}
        honest(self, values, **options)

    monkeypatch.setattr(DetectorModule, "log_dict", log)
    out = run(shapes, tmp_path, "--patience 2", epochs=5)
    found = [row["val/AP"] for row in read_metrics(out / "metrics.csv") if "val/AP" in row]
    assert found == pytest.approx([0.2, 0.5, 0.4, 0.3])
    assert content(out, "best.ckpt")["epoch"] == 1


@pytest.mark.slow
def test_compiled_losses_are_the_losses(shapes: Path, tmp_path: Path) -> None:
    eager = run(shapes, tmp_path / "eager", "--lr 1e-9")
    compiled = run(shapes, tmp_path / "compiled", "--lr 1e-9 --compile")
    rows = [[r for r in read_metrics(o / "metrics.csv") if "loss" in r] for o in (eager, compiled)]
    for a, b in zip(*rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


@pytest.mark.slow
def test_anchor_sizes(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(shapes, tmp_path / "given", "--anchor-sizes 8 16 32 64 128")
    cells = load_detector(out / "best.ckpt").model.anchor_cells()
    assert cells is not None
    assert cells[0][3] == (-4, -4, 4, 4)
    printed = capsys.readouterr().out
    assert "anchors of 8 16 32 64 128 pixels: IoU 0.5 or more for" in printed
    auto = run(shapes, tmp_path / "auto", "--anchor-sizes auto")
    best = re.search(r"; of ([\d ]+) \(--anchor-sizes auto\)", capsys.readouterr().out)
    assert best
    options = content(auto)["hyper_parameters"]["model_options"]
    assert " ".join(f"{size:g}" for size in options["anchor_sizes"]) == best[1]
    run(shapes, auto, "--anchor-sizes auto --resume", epochs=2)
    assert content(auto)["hyper_parameters"]["model_options"] == options
    with pytest.raises(SystemExit):
        run(shapes, tmp_path / "fcos", "--model fcos --anchor-sizes auto")
    assert "anchor_sizes: auto is for detectors that match anchors by IoU" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_weights_of_another_training(shapes: Path, tmp_path: Path, capsys) -> None:
    first = run(shapes, tmp_path / "first")
    run(shapes, tmp_path / "second", f"--weights {first / 'best.ckpt'} --lr 1e-12")
    assert "tensors loaded" in capsys.readouterr().out
    for name, value in content(first)["state_dict"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(content(tmp_path / "second")["state_dict"][name], value)
    with pytest.raises(SystemExit):
        run(shapes, tmp_path / "third", f"--weights {first / 'best.ckpt'} --pretrained")
    assert "weights: expected no checkpoint together with pretrained" in capsys.readouterr().err


def test_presets(tmp_path: Path) -> None:
    options = TrainOptions(tmp_path, tmp_path)
    for on_gpu, name in ((False, "cpu"), (True, "gpu")):
        complete = options.complete(on_gpu)
        assert {key: getattr(complete, key) for key in PRESETS[name]} == PRESETS[name]
    given = TrainOptions(tmp_path, tmp_path, preset="gpu", batch_size=3).complete(False)
    assert (given.backbone, given.batch_size) == ("resnet50", 3)


def test_sync_batch_norms_need_gpus(shapes: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run(shapes, tmp_path, "--batch-norm sync --devices 2")
    assert "batch_norm: sync between processes needs GPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weight-decay -1", "weight_decay: expected a number from 0 on, got -1.0"),
        ("--gamma 0", "gamma: expected a number above 0, got 0.0"),
        ("--accumulate 0", "accumulate: expected a number from 1 on, got 0"),
        ("--ema 1", "ema: expected a number in (0, 1), got 1.0"),
        ("--milestones 3 2 --schedule step", "milestones: expected ascending numbers of epochs"),
        ("--milestones 3", "milestones: expected the schedule step, got cosine"),
        (
            "--milestones 1 2 --schedule step --epochs 2",
            "milestones: expected ends of epochs below 2, the number of epochs, got (1.0, 2.0)",
        ),
        ("--warmup-steps 3 --warmup-epochs 1", "warmup_epochs: expected no value together with"),
        ("--anchor-sizes 0 1 2 3 4", "anchor_sizes: expected auto or numbers above 0"),
        ("--patience 0", "patience: expected a number from 1 on, got 0"),
        ("--devices 0", "devices: expected a number from 1 on, got 0"),
        ("--min-size 65", "max_size: expected at least min_size, 65, got 64"),
        ("--momentum 1 --optimizer sgd", "momentum: expected a number in [0, 1), got 1.0"),
        ("--seed -1", "seed: expected a number from 0 to 4294967295, got -1"),
        ("--loggers tensorboard tensorboard", "loggers: expected each once, got tensorboard ten"),
    ],
)
def test_values_out_of_range(shapes: Path, tmp_path: Path, capsys, options, message) -> None:
    with pytest.raises(SystemExit) as stop:
        run(shapes, tmp_path, options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
