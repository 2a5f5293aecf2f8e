# SPDX-License-Identifier: BSD-3-Clause
"""Several processes train and validate as one does: two on the CPU, joined by gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdet.data import write_shapes
from fastdet.training.data_module import EpochShuffle
from fastdet.training.kept_metrics import kept_metrics
from fastdet.training.metrics_log import read_metrics
from fastdet.training.processes import devices_and_nodes
from fastdet.training.train import evaluate

TRAIN = [
    "train",
    "--model",
    "faster_rcnn",
    "--backbone",
    "test_resnet",
    "--min-size",
    "64",
    "--max-size",
    "64",
    "--fpn-channels",
    "16",
    "--device",
    "cpu",
    "--epochs",
    "2",
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=11, val=5, size=64)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["--devices 2", "torchrun"])
def test_two_processes_are_one_training(shapes: Path, tmp_path: Path, launcher: str) -> None:
    start = ["fastdet.cli"]
    if launcher == "torchrun":
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *start]
    command = [*start, *TRAIN, "--data", str(shapes), "--out", str(tmp_path), "--batch-size", "2"]
    result = run(*command, *(launcher.split() if launcher != "torchrun" else ()))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1/2  step 2") == 1  # one of the two prints
    assert result.stdout.count("checkpoints and log") == 1
    files = ["best.ckpt", "last.ckpt", "metrics.csv", "options.yaml", "report.html", "run.yaml"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2, 3]

    kept = kept_metrics(tmp_path / "last.ckpt")
    assert kept is not None
    metrics, epoch = kept
    assert epoch == 2
    alone = evaluate(tmp_path / "last.ckpt", shapes)
    assert metrics.stats == alone.stats  # to the last digit
    assert metrics.stats["AR100"] > 0
    assert metrics.per_class == alone.per_class
    assert (metrics.images, metrics.images_in_file) == (5, 5)


@pytest.mark.slow
def test_a_second_process_that_fails_ends_the_training(tmp_path: Path) -> None:
    """More processes than validation images."""
    data, out = write_shapes(tmp_path / "shapes", train=2, val=1, size=64), tmp_path / "run"
    command = [*TRAIN, "--data", str(data), "--out", str(out), "--batch-size", "1"]
    result = run("fastdet.cli", *command, "--devices", "2")
    assert result.returncode == 2
    assert "expected an image for each of 2 processes, got 1" in result.stderr


@pytest.mark.parametrize("processes", [1, 2, 3, 20])
def test_each_step_has_the_images_of_one_process(processes: int) -> None:
    alone = [index for _, index in EpochShuffle(11, seed=3)]
    assert sorted(alone) == list(range(11))
    parts = [[i for _, i in EpochShuffle(11, 3, n, processes)] for n in range(processes)]
    assert len({len(part) for part in parts}) == 1
    joined = [index for turn in zip(*parts, strict=True) for index in turn]
    assert joined[:11] == alone[: len(joined)]
    assert len(set(joined)) == min(11, len(joined))


def test_devices_and_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_and_nodes(None) == (1, 1)
    assert devices_and_nodes(3) == (3, 1)
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("WORLD_SIZE", "6"),
    ):
        monkeypatch.setenv(name, value)
    assert devices_and_nodes(None) == (2, 3)
    with pytest.raises(ValueError, match="devices: torchrun started 2 processes, got 3"):
        devices_and_nodes(3)
