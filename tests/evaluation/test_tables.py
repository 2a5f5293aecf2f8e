# SPDX-License-Identifier: BSD-3-Clause
"""Tables and plots of invented metrics."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fastdet.evaluation import ClassMetrics, CocoMetrics, class_table, pr_figure, stats_table
from fastdet.evaluation.coco_metrics import STATS
from fastdet.evaluation.plots import MAX_NAMED


def metrics(num_classes=2, images=5):
    rows = [
        ClassMetrics(f"kind {k}", 0.5 - k / 200, 0.75 - k / 200, 10) for k in range(num_classes)
    ]
    curve = (np.linspace(0, 1, 101), np.linspace(1, 0.5, 101))
    stats = {name: -1.0 if name == "APl" else i / 16 for i, name in enumerate(STATS)}
    curves = {row.name: curve for row in rows}
    return CocoMetrics(stats, [*rows, ClassMetrics("absent", -1.0, -1.0, 0)], curves, images, 5)


def printed(table):
    file = io.StringIO()
    console = Console(file=file, width=100)
    console.print(table)
    lines = file.getvalue().splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_class_table_shows_a_dash_where_there_is_nothing_to_find():
    lines = printed(class_table(metrics()))
    assert ["kind 0", "0.500", "0.750", "10"] in lines
    assert ["absent", "-", "-", "0"] in lines
    assert ["mean", "0.000", "0.062", "20"] in lines
    assert ["5 images"] in lines
    assert ["3 of 5 images"] in printed(class_table(metrics(images=3)))


@pytest.mark.parametrize("name", ["[/]", "[red]", "a[b]c"])
def test_a_class_may_have_any_name(name):
    one = replace(metrics(0), per_class=[ClassMetrics(name, 0.5, 0.75, 10)])
    assert [name, "0.500", "0.750", "10"] in printed(class_table(one))


def test_stats_table_has_all_twelve():
    lines = printed(stats_table(metrics()))
    assert ["AP, IoU 0.50", "0.062"] in lines
    assert ["AP, large (area > 96²)", "-"] in lines
    assert len([line for line in lines if len(line) == 2]) == len(STATS)


@pytest.mark.parametrize("num_classes", [0, 1, 6, MAX_NAMED, MAX_NAMED + 1, 80])
def test_pr_figure(num_classes, tmp_path):
    figure = pr_figure(metrics(num_classes))
    figure.savefig(tmp_path / "pr.png")
    assert (tmp_path / "pr.png").stat().st_size > 5_000
    named = num_classes <= MAX_NAMED
    lines = figure.axes[0].get_lines()
    assert len(lines) == (num_classes if named else num_classes + 1)
    if num_classes:
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(labels) == (num_classes if named else 1)
        assert labels[0].startswith("kind 0" if named else f"mean of {num_classes} classes")
        recall, precision = metrics().pr_curves["kind 0"]
        assert np.array_equal(lines[0].get_xdata(), recall)
        assert np.array_equal(lines[0].get_ydata(), precision)


def test_plots_leave_pyplot_alone():
    from matplotlib import pyplot

    pr_figure(metrics())
    assert pyplot.get_fignums() == []
