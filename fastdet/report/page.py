# SPDX-License-Identifier: BSD-3-Clause
"""Reports as one HTML file each: no script, no network, a light and a dark theme.

It takes plain data and only writes the page.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from fastdet.evaluation import CocoMetrics
from fastdet.files import replacing
from fastdet.report.charts import Line, line_chart
from fastdet.report.figures import three_digits

ABSENT = "\N{EN DASH}"

OpRow = tuple[str, str, float | None, float | None, float | None]
"""Op, workload, fastdet's milliseconds, torchvision's milliseconds, torchvision's / fastdet's."""


@dataclass(frozen=True)
class Comparison:
    """One image twice: with the detections and with the ground truth."""

    caption: str
    found: Image.Image
    truth: Image.Image


@dataclass(frozen=True)
class TrainedModel:
    """One model's part of the report."""

    name: str
    facts: dict[str, str]
    losses: Sequence[Line]
    validation: Sequence[Line]
    metrics: CocoMetrics
    pictures: Sequence[Comparison] = field(default_factory=list)


def write_report(
    path: Path,
    title: str,
    introduction: str,
    models: Sequence[TrainedModel],
    op_rows: Sequence[OpRow] | None = None,
    with_ops: bool = True,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        title: the heading.
        introduction: one or two sentences below the heading.
        models: one section for each model, in this order.
        op_rows: the table of operators beside torchvision; None if they were not measured.
        with_ops: whether there is a section with that table.
    """
    sections = [_overview(models), *(_model_section(model) for model in models)]
    if with_ops:
        sections.append(_op_section(op_rows))
    write_page(path, title, introduction, sections)


def write_page(path: Path, title: str, introduction: str, sections: Sequence[str]) -> None:
    """Writes a page in the house's style.

    Args:
        path: the HTML file.
        title: the heading.
        introduction: one or two sentences below the heading.
        sections: HTML fragments.
    """
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(introduction)}</p></header>'
        f"{''.join(sections)}</main></body></html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def facts(rows: dict[str, str]) -> str:
    """HTML of a few names with their values."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in rows.items()
    )
    return f'<dl class="facts">{items}</dl>'


def picture_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> str:
    """HTML of a grid of pictures, each with its caption."""
    figures = "".join(
        f'<figure><img alt="{escape(caption)}" src="{data_url(picture)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, picture in pictures
    )
    return f'<div class="sheet">{figures}</div>'


def smoothed(line: Line, weight: float = 0.9) -> Line:
    """Exponential moving average of a line, corrected for the bias of the first values."""
    average, total, ys = 0.0, 0.0, []
    for y in line.y:
        average = weight * average + (1 - weight) * y
        total = weight * total + (1 - weight)
        ys.append(average / total)
    return Line(line.name, line.x, ys)


def _overview(models: Sequence[TrainedModel]) -> str:
    tiles = "".join(
        f'<div class="tile"><div class="name">{escape(model.name)}</div>'
        f'<div class="figure">{_number(model.metrics.stats.get("AP50"))}</div>'
        f'<div class="unit">AP50 on the validation split</div>'
        f'<div class="note">AP {_number(model.metrics.stats.get("AP"))}</div></div>'
        for model in models
    )
    names = list(dict.fromkeys(name for model in models for name in model.metrics.stats))
    rows = [
        [model.name, *(_number(model.metrics.stats.get(name)) for name in names)]
        for model in models
    ]
    return (
        f'<section><div class="tiles">{tiles}</div><h2>COCO metrics</h2>'
        f"{html_table(['', *names], rows)}</section>"
    )


def _model_section(model: TrainedModel) -> str:
    ceiling = _ceiling(model.losses)
    losses = line_chart([smoothed(line) for line in model.losses], "step", "loss", y_max=ceiling)
    validation = line_chart(model.validation, "epoch", "AP", y_max=1.0)
    curves = [
        Line(name, list(recall), [max(0.0, float(value)) for value in precision])
        for name, (recall, precision) in model.metrics.pr_curves.items()
    ]
    precision = line_chart(curves, "recall", "precision", y_max=1.0, x_range=(0.0, 1.0))
    charts = [
        ("Training losses", losses, "Moving average over about ten steps."),
        ("Validation AP", validation, "On the validation split, after each validated epoch."),
        ("Precision over recall", precision, "At IoU 0.5, a line a class."),
    ]
    figures = "".join(
        f"<figure><figcaption><b>{escape(name)}</b> {escape(note)}</figcaption>{chart}</figure>"
        for name, chart, note in charts
    )
    table = (
        "<figure><figcaption><b>Average precision by class</b></figcaption>"
        f"{_class_table(model.metrics)}</figure>"
    )
    pictures = "".join(_comparison(comparison) for comparison in model.pictures)
    if pictures:
        pictures = f'<h3>Found, and the ground truth</h3><div class="pictures">{pictures}</div>'
    return (
        f"<section><h2>{escape(model.name)}</h2>{facts(model.facts)}"
        f'<div class="charts">{figures}{table}</div>{pictures}</section>'
    )


def _class_table(metrics: CocoMetrics) -> str:
    rows = [
        [
            escape(row.name),
            f"{_number(row.AP)}{_bar(row.AP)}",
            _number(row.AP50),
            str(row.n_gt),
        ]
        for row in metrics.per_class
    ]
    return html_table(["class", "AP", "AP50", "boxes"], rows, escaped=True)


def _op_section(rows: Sequence[OpRow] | None) -> str:
    if not rows:
        body = '<p class="absent">Not measured in this run.</p>'
    else:
        cells = [
            [op, workload, _measure(ours), _measure(theirs), _measure(ratio, " x")]
            for op, workload, ours, theirs, ratio in rows
        ]
        head = ["op", "workload", "fastdet ms", "torchvision ms", "ratio"]
        body = (
            "<p>Medians of alternating runs on this machine; the ratio is torchvision's time over "
            f"fastdet's.</p>{html_table(head, cells, text_columns=2)}"
        )
    return f"<section><h2>Operators beside torchvision</h2>{body}</section>"


def _comparison(comparison: Comparison) -> str:
    views = {"found": comparison.found, "ground truth": comparison.truth}
    return views_of(comparison.caption, views)


def views_of(caption: str, views: Mapping[str, Image.Image], wide: bool = False) -> str:
    """HTML of one image in several views, side by side, each with its name.

    Args:
        caption: below them.
        views: two, or with `wide` any number.
        wide: over the whole width of the page.
    """
    images = "".join(
        f'<div><img alt="{escape(caption)}, {escape(kind)}" src="{data_url(picture)}">'
        f"<span>{escape(kind)}</span></div>"
        for kind, picture in views.items()
    )
    columns = f' style="--views:{len(views)};grid-column:1/-1"' if wide else ""
    return f"<figure{columns}>{images}<figcaption>{escape(caption)}</figcaption></figure>"


def html_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_columns: int = 1,
    escaped: bool = False,
) -> str:
    """A table as an HTML fragment.

    Args:
        head: one text for each column.
        rows: the cells.
        text_columns: how many of the first columns are text, not numbers.
        escaped: whether the cells are HTML already.
    """

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="text"' if column < text_columns else ""
        return f"<{tag}{kind}>{text if escaped else escape(text)}</{tag}>"

    lines = [f"<tr>{''.join(cell('th', i, text) for i, text in enumerate(head))}</tr>"]
    lines += [f"<tr>{''.join(cell('td', i, t) for i, t in enumerate(row))}</tr>" for row in rows]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _number(value: float | None) -> str:
    """Three decimals; a dash for a missing number and for COCO's -1."""
    return ABSENT if value is None or value < 0 else f"{value:.3f}"


def _measure(value: float | None, unit: str = "") -> str:
    """Three significant digits and a unit; a dash for a missing number."""
    return ABSENT if value is None else f"{three_digits(value)}{unit}"


def _bar(value: float) -> str:
    return f'<span class="bar"><i style="width:{max(0.0, value):.1%}"></i></span>'


def _ceiling(lines: Sequence[Line]) -> float | None:
    """Upper end of the loss chart, without the first 5 % of steps, whose losses are very large."""
    late = [y for line in lines for y in smoothed(line).y[len(line.y) // 20 :]]
    return max(late) * 1.05 if late else None


def data_url(picture: Image.Image) -> str:
    """A picture as the source of an HTML image."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


STYLE = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1b1d21; --muted: #656b76; --grid: #e4e6ea;
  --accent: #2f6fde;
  --c0: #2f6fde; --c1: #d9622b; --c2: #2a9d6e; --c3: #b4389b; --c4: #8a6d00; --c5: #0f8fb3;
  --c6: #c5304a; --c7: #6b57d2; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14161a; --card: #1c1f25; --ink: #e8eaed; --muted: #9aa1ad; --grid: #31363f;
  --accent: #7aa7ff;
  --c0: #7aa7ff; --c1: #ff9a66; --c2: #5fd3a2; --c3: #e98fd6; --c4: #d9bd4a; --c5: #5fc8e6;
  --c6: #ff8095; --c7: #aea0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 8px; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; margin: 56px 0 12px; }
h3 { font-size: 1.05rem; margin: 32px 0 12px; }
.lead { font-size: 1.08rem; color: var(--muted); max-width: 68ch; margin: 0 0 32px; }
.absent { color: var(--muted); font-style: italic; }
.error { color: var(--c6); } .warning { color: var(--c4); } .note { color: var(--c5); }
details { margin: 8px 0; font-size: 0.88rem; } li { overflow-wrap: anywhere; }
.tiles { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.tile, figure { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; }
.tile { padding: 18px 22px; }
.tile .name { font-weight: 600; }
.tile .figure { font-size: 2.6rem; font-weight: 650; line-height: 1.15; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.tile .unit, .tile .note { color: var(--muted); font-size: 0.9rem; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 0 0 20px; }
.facts dt { color: var(--muted); font-size: 0.8rem; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.charts, .pictures { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
figure { margin: 0; padding: 16px 18px; min-width: 0; }
figcaption { font-size: 0.88rem; color: var(--muted); margin-bottom: 8px; }
figcaption b { color: var(--ink); font-weight: 600; margin-right: 6px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--muted); font-size: 12px; text-anchor: middle; }
svg .tick { font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--muted); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 0.85rem; margin-top: 6px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i { width: 14px; height: 3px; border-radius: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 12px; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 500; font-size: 0.85rem; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child td { border-bottom: 0; }
.bar { display: inline-block; vertical-align: middle; width: 90px; height: 8px; margin-left: 10px;
  border-radius: 4px; background: var(--grid); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.pictures figure { display: grid; grid-template-columns: repeat(var(--views, 2), 1fr); gap: 10px; }
.pictures figcaption { grid-column: 1 / -1; margin: 0; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 6px; }
.sheet { display: grid; gap: 16px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.sheet figure { padding: 10px; }
.sheet figcaption { margin: 8px 0 0; }
.sheet img { display: block; width: 100%; height: auto; border-radius: 6px; }
.pictures span { display: block; font-size: 0.8rem; color: var(--muted); margin-top: 4px; }
"""
