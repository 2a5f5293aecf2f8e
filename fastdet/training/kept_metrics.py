# SPDX-License-Identifier: BSD-3-Clause
"""The metrics that a checkpoint keeps: those of the validation after which it was written."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdet.evaluation.coco_metrics import ClassMetrics, CocoMetrics
from fastdet.training.checkpoint import read_checkpoint


def as_plain(metrics: CocoMetrics) -> dict[str, Any]:
    """Metrics as plain data for a checkpoint, without the curves."""
    masks = None if metrics.masks is None else as_plain(metrics.masks)
    plain = asdict(metrics) | {"masks": masks}
    plain["per_class"] = [tuple(row) for row in metrics.per_class]
    del plain["pr_curves"]
    return plain


def kept_metrics(checkpoint: Path) -> tuple[CocoMetrics, int] | None:
    """The metrics in a checkpoint, and its epoch, from 1 on; None: an older one has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of fastdet.
    """
    content = read_checkpoint(checkpoint)
    plain = content.get("metrics")
    return None if plain is None else (_metrics(plain), content["epoch"] + 1)


def _metrics(plain: dict[str, Any]) -> CocoMetrics:
    masks = None if plain["masks"] is None else _metrics(plain["masks"])
    per_class = [ClassMetrics(*row) for row in plain["per_class"]]
    return CocoMetrics(**(plain | {"per_class": per_class, "pr_curves": {}, "masks": masks}))
