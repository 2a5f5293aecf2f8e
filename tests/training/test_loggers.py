# SPDX-License-Identifier: BSD-3-Clause
"""All loggers get every value at the step that metrics.csv has it."""

import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdet.data import write_shapes
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import LoggerName, TrainOptions
from fastdet.training.train import train

Values = dict[str, list[tuple[int, float]]]


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        write_shapes(tmp_path / "shapes", train=4, val=2, size=64),
        tmp_path / "run",
        "retinanet",
        "test_resnet",
        epochs=2,
        batch_size=2,
        min_size=64,
        max_size=64,
        fpn_channels=8,
        device="cpu",
    )


def logged(options: TrainOptions, name: LoggerName) -> Values:
    """What metrics.csv has of a training with a further logger."""
    train(TrainOptions(**(vars(options) | {"loggers": (name,)})))
    values: Values = defaultdict(list)
    for row in read_metrics(options.out / "metrics.csv"):
        for key in row.keys() - {"step"}:
            values[key].append((int(row["step"]), pytest.approx(row[key], rel=1e-5)))
    assert len(values["loss"]) == 4
    assert [step for step, _ in values["val/AP"]] == [1, 3]
    return dict(values)


@pytest.mark.slow
def test_tensorboard(options: TrainOptions) -> None:
    expected = logged(options, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(options.out / "tensorboard"))
    events.Reload()
    found = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "hp_metric"
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.slow
def test_mlflow_in_files(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    expected = logged(options, "mlflow")
    found: Values = {}
    for folder in (options.out / "mlruns").rglob("metrics"):
        for file in (path for path in folder.rglob("*") if path.is_file()):
            rows = [line.split() for line in file.read_text().splitlines()]
            name = file.relative_to(folder).as_posix()
            found[name] = [(int(step), float(value)) for _, value, step in rows]
    assert {name: found[name] for name in expected} == expected


def records(content: bytes) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log format behind a header of 7 bytes."""
    at, parts = 7, []
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of the block
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts.clear()


def history(file: Path) -> Values:
    """What a run's file has of metrics."""
    from wandb.proto import wandb_internal_pb2

    found: Values = defaultdict(list)
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {
            "/".join(item.nested_key) or item.key: float(item.value_json)
            for item in record.history.item
            if item.value_json.replace(".", "").replace("e-", "").lstrip("-").isdigit()
        }
        for key, value in items.items():
            found[key].append((int(items["trainer/global_step"]), value))
    return found


@pytest.mark.slow
def test_wandb_offline(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    expected = logged(options, "wandb")
    import wandb

    wandb.teardown()  # ends its service, which writes the file
    (file,) = options.out.rglob("*.wandb")
    for _ in range(100):  # the service may still be writing
        found = history(file)
        if found["loss"] == expected["loss"]:
            break
        time.sleep(0.1)
    assert {name: found[name] for name in expected} == expected


def test_a_missing_package_is_named(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match="wandb"):
        train(TrainOptions(**(vars(options) | {"loggers": ("wandb",)})))


@pytest.mark.slow
def test_a_logger_that_fails_does_not_end_the_training(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    calls = []

    def no_space(self, metrics, step=None) -> None:
        calls.append(step)
        if step == 1:
            raise OSError("No space left on device")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", no_space)
    with pytest.warns(UserWarning, match="tensorboard failed .* No space left on device"):
        logged(options, "tensorboard")  # metrics.csv has the values of all steps
    assert calls[-2:] == [0, 1]
