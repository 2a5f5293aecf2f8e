# SPDX-License-Identifier: BSD-3-Clause
"""The report of one training, from the files in its folder alone: OUT/report.html."""

from pathlib import Path
from typing import Any

from fastdet.report.charts import Line
from fastdet.report.page import TrainedModel, write_report
from fastdet.report.runs import read_run
from fastdet.training.callbacks import duration
from fastdet.training.kept_metrics import kept_metrics

NO_LOSSES = ("step", "epoch", "lr", "loss")
SHOWN = ("lr", "optimizer", "schedule", "batch_size", "min_size", "max_size", "batch_norm", "seed")


def write_run_page(folder: Path) -> Path:
    """Writes the report of the training in a folder; one that is there is replaced.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: no training, or none that was validated.
    """
    run, kept = read_run(folder), kept_metrics(folder / "best.ckpt")
    if kept is None:
        raise FileNotFoundError(f"{folder}/best.ckpt: expected a checkpoint with its metrics")
    metrics, epoch = kept
    steps = [row for row in run.rows if "loss" in row]
    parts = [name for name in steps[0] if name not in NO_LOSSES] if steps else []
    x = [row["step"] for row in steps]
    epochs = [row["epoch"] + 1 for row in run.validations]
    model = TrainedModel(
        name=str(run.options.get("model", folder.name)),
        facts=_facts(run.options) | {"best epoch": str(epoch), "time": duration(run.seconds)},
        losses=[Line(name, x, [row[name] for row in steps]) for name in ["loss", *parts]],
        validation=[
            Line(name, epochs, [row[f"val/{name}"] for row in run.validations])
            for name in ("AP50", "AP", "AP75")
        ],
        metrics=metrics,
    )
    report = folder / "report.html"
    introduction = run.options.get("hypothesis") or "A training with fastdet."
    write_report(report, folder.name, introduction, [model], with_ops=False)
    return report


def _facts(options: dict[str, Any]) -> dict[str, str]:
    facts = {"backbone": str(options.get("backbone")), "epochs": str(options.get("epochs"))}
    named = {name: options[name] for name in SHOWN if options.get(name) is not None}
    return facts | {name.replace("_", " "): str(value) for name, value in named.items()}
