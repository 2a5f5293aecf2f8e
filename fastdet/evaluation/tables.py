# SPDX-License-Identifier: BSD-3-Clause
"""COCO metrics as rich tables for the terminal. A dash means that there are no objects to find."""

from rich.table import Table

from fastdet.evaluation.coco_metrics import CocoMetrics
from fastdet.terminal import escape

_MEANING = {
    "AP": "AP, IoU 0.50:0.95",
    "AP50": "AP, IoU 0.50",
    "AP75": "AP, IoU 0.75",
    "APs": "AP, small (area < 32²)",
    "APm": "AP, medium (32² to 96²)",
    "APl": "AP, large (area > 96²)",
    "AR1": "AR, 1 detection an image",
    "AR10": "AR, 10 detections",
    "ARs": "AR, small",
    "ARm": "AR, medium",
    "ARl": "AR, large",
}


def stats_table(metrics: CocoMetrics, title: str = "COCO metrics") -> Table:
    """COCO's twelve numbers, one in each row."""
    table = Table(title=escape(title), caption=_caption(metrics))
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.stats.items():
        meaning = _MEANING.get(name) or f"AR, {name[2:]} detections"
        most = name not in _MEANING
        table.add_row(meaning, format_metric(value), end_section=name == "APl" or most)
    return table


def class_table(metrics: CocoMetrics, title: str = "per class") -> Table:
    """AP, AP50 and number of objects of each class, and the means over the classes.

    The means are COCO's AP and AP50, over the classes that have objects.
    """
    table = Table(title=escape(title), caption=_caption(metrics), show_footer=True)
    total = sum(row.n_gt for row in metrics.per_class)
    table.add_column("class", footer="mean")
    table.add_column("AP", footer=format_metric(metrics.stats["AP"]), justify="right")
    table.add_column("AP50", footer=format_metric(metrics.stats["AP50"]), justify="right")
    table.add_column("objects", footer=str(total), justify="right")
    for name, ap, ap50, n_gt in metrics.per_class:
        table.add_row(escape(name), format_metric(ap), format_metric(ap50), str(n_gt))
    return table


def format_metric(value: float) -> str:
    """Three decimals; a dash for -1, no objects."""
    return "-" if value < 0 else f"{value:.3f}"


def _caption(metrics: CocoMetrics) -> str:
    if metrics.images == metrics.images_in_file:
        return f"{metrics.images} images"
    return f"{metrics.images} of {metrics.images_in_file} images"
