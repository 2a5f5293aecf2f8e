# SPDX-License-Identifier: BSD-3-Clause
"""A training that a signal ends says so, leaves whole files, and can be resumed."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import lightning
import pytest
import torch

from fastdet.cli import main
from fastdet.data import write_shapes
from fastdet.models import RetinaNet
from fastdet.training.options import TrainOptions
from fastdet.training.stopping import Stopped, stopping_at_sigterm
from fastdet.training.train import train


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=4, size=64)


def arguments(shapes: Path, out: Path) -> list[str]:
    options = "--model retinanet --backbone test_resnet --min-size 64 --max-size 64"
    options += " --fpn-channels 16 --batch-size 4"
    return ["train", "--data", str(shapes), "--out", str(out), *options.split()]


def stopped_training(
    command: list[str], number: signal.Signals, first_line: str
) -> tuple[int, list[str]]:
    """Sends the signal once `first_line` is printed; gives exit status and lines on stderr.

    All processes get it, those that load images too, as from a terminal or from `timeout`.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "fastdet.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what it runs in the background without SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(first_line):
                break
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=300)
    return process.returncode, [line for line in errors.splitlines() if "arn" not in line]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_training_says_where_and_resumes(
    shapes: Path, tmp_path: Path, name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(shapes, tmp_path)
    returned, errors = stopped_training(
        [*command, "--epochs", "2000", "--workers", "2"], signal.Signals[name], "epoch 2/"
    )
    assert returned == status, errors
    files = ["best.ckpt", "last.ckpt", "metrics.csv", "options.yaml", "run.yaml"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    line = r"fastdet: stopped at step (\d+); continue with --resume, from the checkpoint of step "
    found = re.fullmatch(f"{line}{saved}", errors[-1])
    assert found, errors
    assert int(found[1]) >= saved

    main([*command, "--epochs", str(saved // 2 + 1), "--resume"])
    assert f"step {saved + 2}  loss" in capsys.readouterr().out


def test_stopped_before_the_first_checkpoint(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def stopped_here(*_) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RetinaNet, "losses", stopped_here)
    with pytest.raises(SystemExit) as stop:
        main([*arguments(shapes, tmp_path), "--epochs", "1"])
    assert stop.value.code == 143
    expected = "fastdet: stopped at step 0, before the first checkpoint\n"
    assert capsys.readouterr().err.endswith(expected)
    files = ["metrics.csv", "options.yaml", "run.yaml"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files


@pytest.mark.parametrize("noted", [False, True])
def test_what_a_signal_sets_off_says_where_the_training_stopped(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, noted: bool
) -> None:
    """Before Lightning has noted the signal, and after that, when a loading process has ended."""

    def stopped_here(self: lightning.Trainer, *_, **__) -> None:
        self._signal_connector.received_sigterm = noted
        raise ConnectionResetError if noted else Stopped(signal.SIGTERM)

    monkeypatch.setattr(lightning.Trainer, "fit", stopped_here)
    with pytest.raises(SystemExit) as stop:
        main([*arguments(shapes, tmp_path), "--epochs", "1"])
    assert stop.value.code == 143
    assert "fastdet: stopped at step 0, before" in capsys.readouterr().err


def test_a_loading_process_may_end_before_the_signal_comes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def stopped_here(*_, **__) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    monkeypatch.setattr(lightning.Trainer, "fit", stopped_here)
    with pytest.raises(SystemExit) as stop:
        main([*arguments(shapes, tmp_path), "--epochs", "1"])
    assert stop.value.code == 143
    assert "fastdet: stopped at step 0, before" in capsys.readouterr().err


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("number", "status", "step"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 0)]
)
def test_without_the_command_line(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    status: int,
    step: int,
) -> None:
    """Lightning finishes the step at SIGTERM, and ends at once at Ctrl-C."""
    honest = RetinaNet.losses

    def stopped_here(self: RetinaNet, batch) -> dict[str, torch.Tensor]:
        signal.raise_signal(number)
        return honest(self, batch)

    monkeypatch.setattr(RetinaNet, "losses", stopped_here)
    options = TrainOptions(
        data=shapes,
        out=tmp_path,
        model="retinanet",
        backbone="test_resnet",
        batch_size=4,
        min_size=64,
        max_size=64,
        fpn_channels=16,
    )
    with pytest.raises(Stopped, match=f"stopped at step {step}, before the first") as stop:
        train(options)
    assert stop.value.code == status


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_other_commands_end_with_one_line(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr("fastdet.cli._run", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["describe"])
    assert stop.value.code == (130 if isinstance(error, KeyboardInterrupt) else 143)
    assert capsys.readouterr().err == "fastdet: stopped\n"
    with pytest.raises(type(error)):
        main(["describe", "--debug"])


def test_the_first_sigterm_stops_and_later_ones_do_not_disturb() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = False

    def work() -> None:
        nonlocal cleaned
        with stopping_at_sigterm():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned = True

    with pytest.raises(Stopped, match="stopped") as stop:
        work()
    assert cleaned
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_that_the_stop_sets_off_is_no_error() -> None:
    def work() -> None:
        with stopping_at_sigterm():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                raise RuntimeError("a loading process ended")

    with pytest.raises(Stopped):
        work()
    with pytest.raises(RuntimeError, match="by itself"), stopping_at_sigterm():
        raise RuntimeError("by itself")


def test_another_thread_handles_no_signals() -> None:
    done = []

    def work() -> None:
        with stopping_at_sigterm():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
