# SPDX-License-Identifier: BSD-3-Clause
"""A resumed training ends as an unbroken one; what may change between the two does what it says."""

from pathlib import Path

import pytest

from fastdet.cli import main
from fastdet.data import write_shapes
from fastdet.training.detector_module import DetectorModule
from fastdet.training.metrics_log import Row, read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=4, val=2, size=64)


@pytest.fixture(scope="module")
def half(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that stopped in the second of its two epochs."""
    out = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(patch, 1)
        with pytest.raises(SystemExit):
            run(shapes, out)
    return out


def run(shapes: Path, out: Path, options: str = "", epochs: int = 2, batch_size: int = 1) -> Path:
    main(
        f"train --data {shapes} --out {out} --model retinanet --backbone test_resnet --min-size 64 "
        f"--max-size 64 --fpn-channels 8 --epochs {epochs} --batch-size {batch_size} --workers 0 "
        f"--batch-norm group --device cpu {options}".split()
    )
    return out


def copy(folder: Path, out: Path) -> Path:
    for name in ("last.ckpt", "best.ckpt", "metrics.csv", "options.yaml", "run.yaml"):
        (out / name).write_bytes((folder / name).read_bytes())
    return out


def rows(out: Path) -> list[Row]:
    return read_metrics(out / "metrics.csv")


def lrs(out: Path) -> list[float]:
    return [row["lr"] for row in rows(out) if "lr" in row]


def stop_in_epoch(patch: pytest.MonkeyPatch, epoch: int) -> None:
    honest = DetectorModule.training_step

    def step(self: DetectorModule, batch, batch_idx: int):
        if self.current_epoch == epoch:
            raise ValueError("stopped here")
        return honest(self, batch, batch_idx)

    patch.setattr(DetectorModule, "training_step", step)


def let_ap_be(patch: pytest.MonkeyPatch, aps: list[float]) -> None:
    honest = DetectorModule.log_dict

    def log(self: DetectorModule, values, **options) -> None:
        if "val/AP" in values:
            values = {**values, "val/AP": aps[self.current_epoch]}
        honest(self, values, **options)

    patch.setattr(DetectorModule, "log_dict", log)


def test_patience_is_the_same_after_a_resume(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    let_ap_be(monkeypatch, [0.5, 0.4, 0.3, 0.6, 0.7])
    unbroken = run(shapes, tmp_path / "unbroken", "--patience 2", epochs=5)
    assert "stopped early: 2 validations without a better AP" in capsys.readouterr().out
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2)
        with pytest.raises(SystemExit):
            run(shapes, broken, "--patience 2", epochs=5)
    run(shapes, broken, "--patience 2 --resume", epochs=5)
    log = (unbroken / "metrics.csv").read_text()
    assert (broken / "metrics.csv").read_text() == log
    assert [row["epoch"] for row in rows(broken) if "val/AP" in row] == [0, 1, 2]

    run(shapes, broken, "--patience 2 --resume", epochs=5)  # it is over
    assert (broken / "metrics.csv").read_text() == log
    run(shapes, broken, "--patience 3 --resume", epochs=5)
    assert [row["epoch"] for row in rows(broken) if "val/AP" in row] == [0, 1, 2, 3, 4]


def test_another_learning_rate_is_used(shapes: Path, half: Path, tmp_path: Path) -> None:
    unbroken = run(shapes, tmp_path / "unbroken")
    (tmp_path / "resumed").mkdir()
    resumed = run(shapes, copy(half, tmp_path / "resumed"), "--lr 0.005 --resume")
    assert lrs(resumed)[:4] == lrs(unbroken)[:4]
    assert lrs(resumed)[4:] == pytest.approx([10 * lr for lr in lrs(unbroken)[4:]])


def test_another_batch_size_is_at_the_same_place_of_the_schedule(
    shapes: Path, half: Path, tmp_path: Path
) -> None:
    larger = run(shapes, tmp_path / "larger", batch_size=2)
    (tmp_path / "resumed").mkdir()
    resumed = run(shapes, copy(half, tmp_path / "resumed"), "--resume", batch_size=2)
    assert len(lrs(resumed)) == 4 + 2
    assert lrs(resumed)[-1] == pytest.approx(lrs(larger)[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizer sgd", "optimizer: {last} was trained with adamw, got sgd"),
        ("--weight-decay 0.1", "weight_decay: {last} was trained with 0.05, got 0.1"),
        ("--decay-norms", "decay_norms: {last} was trained with False, got True"),
        ("--backbone-lr 0.5", "backbone_lr: {last} was trained with 1.0, got 0.5"),
        ("--anchor-sizes 8 16 32 64 128", "anchor_sizes: {last} was trained with the default"),
    ],
)
def test_what_the_state_belongs_to_stays(
    shapes: Path, half: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    before = (half / "metrics.csv").read_text()
    with pytest.raises(SystemExit) as stop:
        run(shapes, half, f"{options} --resume")
    assert stop.value.code == 2
    assert message.format(last=half / "last.ckpt") in capsys.readouterr().err
    assert (half / "metrics.csv").read_text() == before


def test_an_average_stays(shapes: Path, tmp_path: Path, capsys) -> None:
    run(shapes, tmp_path, "--ema 0.9", epochs=1)
    with pytest.raises(SystemExit):
        run(shapes, tmp_path, "--resume")
    assert "ema: " in capsys.readouterr().err


def test_the_losses_of_validation_are_the_same_after_a_resume(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector of two stages samples proposals for them; new loaders draw random numbers, too."""
    options = "--model faster_rcnn --workers 1"
    unbroken = run(shapes, tmp_path / "unbroken", options)
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1)
        with pytest.raises(SystemExit):
            run(shapes, broken, options)
    run(shapes, broken, f"{options} --resume")
    assert (broken / "metrics.csv").read_text() == (unbroken / "metrics.csv").read_text()
