# SPDX-License-Identifier: BSD-3-Clause
"""The CSV log keeps what it had, also when columns come later and trainings resume."""

from fastdet.training.metrics_log import MetricsLog, read_metrics


def test_columns_that_come_later(tmp_path) -> None:
    log = MetricsLog(tmp_path / "m.csv")
    log.log_metrics({"loss": 2.5}, 0)
    log.log_metrics({"val/AP": 0.25}, 0)
    log.log_metrics({"loss": 1.5}, 1)
    assert read_metrics(tmp_path / "m.csv") == [
        {"step": 0.0, "loss": 2.5},
        {"step": 0.0, "val/AP": 0.25},
        {"step": 1.0, "loss": 1.5},
    ]


def test_resume_drops_the_steps_that_are_done_again(tmp_path) -> None:
    log = MetricsLog(tmp_path / "m.csv")
    for step in range(5):
        log.log_metrics({"loss": float(step)}, step)
    resumed = MetricsLog(tmp_path / "m.csv", first_step=3)
    resumed.log_metrics({"loss": 30.0}, 3)
    assert [row["loss"] for row in read_metrics(tmp_path / "m.csv")] == [0.0, 1.0, 2.0, 30.0]


def test_a_new_training_starts_a_new_file(tmp_path) -> None:
    MetricsLog(tmp_path / "m.csv").log_metrics({"loss": 1.0}, 0)
    MetricsLog(tmp_path / "m.csv")
    assert read_metrics(tmp_path / "m.csv") == []
