# SPDX-License-Identifier: BSD-3-Clause
"""Evaluation: COCO metrics through hotcoco, tables and precision-recall plots."""

from fastdet.evaluation.coco_metrics import (
    ClassMetrics,
    CocoEvaluator,
    CocoMetrics,
    coco_results,
)
from fastdet.evaluation.plots import pr_figure
from fastdet.evaluation.tables import class_table, stats_table

__all__ = [
    "ClassMetrics",
    "CocoEvaluator",
    "CocoMetrics",
    "class_table",
    "coco_results",
    "pr_figure",
    "stats_table",
]
