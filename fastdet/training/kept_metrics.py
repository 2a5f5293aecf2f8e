# SPDX-License-Identifier: BSD-3-Clause
"""The metrics that a checkpoint keeps: those of the validation after which it was written."""

from pathlib import Path
from typing import Any

import numpy as np

from fastdet.evaluation.coco_metrics import ClassMetrics, CocoMetrics
from fastdet.training.checkpoint import read_checkpoint


def as_plain(metrics: CocoMetrics) -> dict[str, Any]:
    """Metrics as plain data for a checkpoint."""
    return {
        "stats": metrics.stats,
        "per_class": [tuple(row) for row in metrics.per_class],
        "pr_curves": {
            name: [curve.tolist() for curve in curves] for name, curves in metrics.pr_curves.items()
        },
        "images": metrics.images,
        "images_in_file": metrics.images_in_file,
        "masks": None if metrics.masks is None else as_plain(metrics.masks),
    }


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
    curves = {
        name: (np.array(recall), np.array(precision))
        for name, (recall, precision) in plain["pr_curves"].items()
    }
    return CocoMetrics(
        plain["stats"],
        [ClassMetrics(*row) for row in plain["per_class"]],
        curves,
        plain["images"],
        plain["images_in_file"],
        None if plain["masks"] is None else _metrics(plain["masks"]),
    )
