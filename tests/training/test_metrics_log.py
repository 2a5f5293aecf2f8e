# SPDX-License-Identifier: BSD-3-Clause
"""The CSV log keeps what it had, also when columns come later and trainings resume."""

import pytest

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


def test_a_resume_repairs_a_torn_last_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, also where what is left reads as a row of an early step."""
    log = MetricsLog(tmp_path / "m.csv")
    for step in (0, 1, 12):
        log.log_metrics({"loss": step + 0.625}, step)
    whole = (tmp_path / "m.csv").read_bytes()
    last_line = whole.rindex(b"12,")
    for end in range(last_line + 1, len(whole)):
        (tmp_path / "m.csv").write_bytes(whole[:end])
        kept = [{"step": 0.0, "loss": 0.625}, {"step": 1.0, "loss": 1.625}]
        assert read_metrics(tmp_path / "m.csv") == kept
        resumed = MetricsLog(tmp_path / "m.csv", first_step=20)
        torn = repr(whole[last_line:end].decode())
        expected = f"m.csv: removed its last line, which is torn: {torn}\n"
        assert capsys.readouterr().out.endswith(expected)
        resumed.log_metrics({"loss": 7.0}, 20)
        assert read_metrics(tmp_path / "m.csv") == [*kept, {"step": 20.0, "loss": 7.0}]
    (tmp_path / "m.csv").write_bytes(whole)
    MetricsLog(tmp_path / "m.csv", first_step=20)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "m.csv").read_bytes() == whole


def test_a_torn_header_is_no_row(tmp_path) -> None:
    (tmp_path / "m.csv").write_text("step,lo")
    assert MetricsLog(tmp_path / "m.csv", first_step=1).rows == []


def test_a_cell_that_is_no_number_is_named(tmp_path) -> None:
    (tmp_path / "m.csv").write_text("step,loss\n0,1.5\n1,x\n")
    with pytest.raises(ValueError, match=r"m\.csv, line 3: could not convert .*'x'"):
        read_metrics(tmp_path / "m.csv")
