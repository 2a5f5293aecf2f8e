# SPDX-License-Identifier: BSD-3-Clause
"""The report is one file that needs no other file, and shows the data that it was given."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from fastdet.evaluation import ClassMetrics, CocoMetrics
from fastdet.evaluation.coco_metrics import STATS
from fastdet.report.charts import Line, line_chart
from fastdet.report.page import Comparison, TrainedModel, smoothed, write_report


def metrics() -> CocoMetrics:
    recall = np.linspace(0, 1, 101)
    return CocoMetrics(
        stats={name: -1.0 if name == "APl" else 0.1 + 0.05 * i for i, name in enumerate(STATS)},
        per_class=[ClassMetrics("circle", 0.61, 0.875, 41), ClassMetrics("a <b>", -1.0, -1.0, 0)],
        pr_curves={"circle": (recall, 1 - recall**4)},
        images=3,
        images_in_file=3,
    )


def trained(name: str) -> TrainedModel:
    steps = list(range(200))
    picture = Image.new("RGB", (96, 96), (200, 40, 40))
    return TrainedModel(
        name=name,
        facts={"backbone": "resnet18"},
        losses=[Line("loss", steps, [3 / (1 + s / 20) for s in steps])],
        validation=[Line("AP50", [1, 2, 3], [0.2, 0.5, 0.7])],
        metrics=metrics(),
        pictures=[Comparison("first.png", picture, picture)],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    op_rows = [
        ("nms", "1k boxes", 0.125, 2.5, 20.0),
        ("roi_align", "1024 rois", 1275.0, None, None),
    ]
    models = [trained("Faster R-CNN"), trained("RetinaNet")]
    write_report(path, "A & B", "Two detectors.", models, op_rows)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_report_loads_nothing(page: str) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/webp;base64,") for source in sources)


def test_report_holds_what_it_was_given(page: str) -> None:
    for text in ("A &amp; B", "Faster R-CNN", "RetinaNet", "first.png", "resnet18", "circle"):
        assert text in page
    assert "a &lt;b&gt;" in page
    assert "<b>\n" not in page
    assert page.count("<svg") == 6
    assert "0.875" in page
    assert "20.0 x" in page
    assert "1,275" in page
    assert "prefers-color-scheme: dark" in page


def test_report_shows_a_dash_for_what_is_absent(page: str) -> None:
    row = re.search(r"<tr><td[^>]*>roi_align.*?</tr>", page)
    assert row is not None
    assert row.group().count("\N{EN DASH}") == 2
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page)
    assert cells
    assert not any(cell.startswith("-") for cell in cells)


def test_report_without_op_rows_says_so(tmp_path) -> None:
    write_report(tmp_path / "r.html", "t", "i", [trained("m")], None)
    assert "Not measured in this run." in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_report_pictures_decode(page: str) -> None:
    data = re.findall(r'base64,([^"]*)"', page)[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 96)


def test_chart_is_well_formed_and_stays_inside() -> None:
    lines = [
        Line("a < b", list(range(1000)), [float(y % 7) for y in range(1000)]),
        Line("one", [500.0], [3.0]),
        Line("none", [], []),
    ]
    svg = line_chart(lines, "x & x", "y").split("<div")[0]
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    curves = root.findall("polyline")
    assert len(curves) == 2
    for curve in curves:
        points = [tuple(map(float, p.split(","))) for p in curve.attrib["points"].split()]
        assert len(points) <= 301
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


@pytest.mark.parametrize("lines", [[], [Line("none", [], [])]])
def test_chart_without_data_says_so(lines: list[Line]) -> None:
    assert line_chart(lines, "x", "y") == '<p class="absent">No data.</p>'


def test_chart_of_constant_zero() -> None:
    assert "<polyline" in line_chart([Line("flat", [0, 1], [0.0, 0.0])], "x", "y")


def test_smoothed_keeps_a_constant() -> None:
    assert smoothed(Line("c", [0, 1, 2], [5.0, 5.0, 5.0])).y == pytest.approx([5.0, 5.0, 5.0])
