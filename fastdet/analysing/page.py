# SPDX-License-Identifier: BSD-3-Clause
"""The files of an analysis: analysis.json with every number, analysis.html with pictures."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fastdet import __version__
from fastdet.analysing.analysis import Analysis, Side
from fastdet.analysing.bootstrap import Difference
from fastdet.analysing.coco import PROPOSALS, SIZES
from fastdet.analysing.drawing import COLOURS, Drawer
from fastdet.analysing.errors import KINDS, MEANINGS
from fastdet.analysing.sentences import sentences, weak_classes
from fastdet.analysing.tables import Table, confusion_matrices, error_counts, tables
from fastdet.files import replacing
from fastdet.report.charts import Line, line_chart
from fastdet.report.page import html_table, views_of
from fastdet.report.page import write_page as write_html
from fastdet.training.options import PictureOptions

CURVES = 8  # classes of a chart: as many as there are colours
OF_CLASS = 4  # pictures of each weak class


def write_json(path: Path, analysis: Analysis, weakest: int) -> None:
    """Writes every number."""
    annotations, options = analysis.annotations, analysis.options
    content = {
        "fastdet": __version__,
        "annotations": str(annotations.path),
        "split": analysis.split,
        "images": len(annotations.image_ids),
        "objects": int((~annotations.crowd).sum()),
        "crowds": int(annotations.crowd.sum()),
        "options": vars(options),
        "sentences": sentences(analysis, weakest),
        "sides": [_side_as_json(analysis, side) for side in analysis.sides],
        "beside": _beside_as_json(analysis),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=1) + "\n", encoding="utf-8")


def write_page(
    path: Path, analysis: Analysis, *, weakest: int, drawn: int, pictures: PictureOptions
) -> None:
    """Writes the page.

    Args:
        path: of the HTML file.
        analysis: to show.
        weakest: number of classes with a sentence and pictures.
        drawn: the most pictures of a section.
        pictures: how they are read.
    """
    said = "".join(f"<li>{escape(text)}</li>" for text in sentences(analysis, weakest))
    sections = [f"<section><ul>{said}</ul></section>"]
    sections += [_table_section(table) for table in tables(analysis)]
    sections += [_table_section(table) for table in confusion_matrices(analysis)]
    sections += [_charts(analysis, side) for side in analysis.sides]
    sections += _picture_sections(analysis, weakest, drawn, pictures)
    names = ", second: ".join(side.name for side in analysis.sides)
    first = "First: " if len(analysis.sides) > 1 else ""
    introduction = f"{first}{names}. On {analysis.split} of {analysis.annotations.path}."
    write_html(path, "What went wrong", introduction, sections)


def worst(analysis: Analysis, most: int, label: int | None = None) -> list[int]:
    """The images with the most errors of all sides together, worst first.

    Args:
        analysis: of one detector or two.
        most: number of images.
        label: count only the errors of a class.
    """
    wrong = sum(side.wrong(analysis.annotations, label) for side in analysis.sides)
    return _largest(np.asarray(wrong), most)


def _largest(counts: np.ndarray, most: int) -> list[int]:
    order = np.argsort(-counts, kind="stable")[:most].tolist()
    return [index for index in order if counts[index] > 0]


def _side_as_json(analysis: Analysis, side: Side) -> dict[str, Any]:
    names, coco, found = analysis.annotations.names, side.coco, side.found
    objects = np.bincount(
        analysis.annotations.labels[~analysis.annotations.crowd], minlength=len(names) + 1
    )
    detections = np.bincount(found.labels, minlength=len(names) + 1)
    counts, calibration = error_counts(analysis, side), side.calibration
    classes = [
        {
            "name": name,
            "objects": objects[c + 1],
            "detections": detections[c + 1],
            **{key: getattr(coco, key)[c] for key in ("AP", "AP50", "AP75", "AR")},
            **dict(zip(("APs", "APm", "APl"), coco.AP_by_size[c], strict=True)),
            "AP_at_iou_threshold": side.cost.base[c],
            "costs": dict(zip(KINDS, side.cost.by_class[c], strict=True)),
            "errors": dict(zip(KINDS, counts[c], strict=True)),
            "best_f1": side.best_of_class[c]._asdict(),
            "ece": None if calibration is None else calibration.by_class[c],
            "precisions": coco.precisions[c],
        }
        for c, name in enumerate(names)
    ]
    ids = np.asarray(analysis.annotations.image_ids, np.int64)
    wrong = side.wrong(analysis.annotations)
    return {
        "name": side.name,
        "detections": len(found),
        "stats": {key: None if value < 0 else value for key, value in coco.stats.items()},
        "AP_at_iou_threshold": side.cost.mean,
        "costs": dict(zip(KINDS, side.cost.total, strict=True)),
        "errors": dict(zip(KINDS, counts.sum(axis=0), strict=True)),
        "best_f1": side.best._asdict(),
        "score_threshold": side.score_threshold,
        "calibration": None
        if calibration is None
        else {k: v for k, v in calibration._asdict().items() if k != "by_class"},
        "confusion": {"classes": [*names, "background"], "matrix": side.confusion.matrix},
        "proposal_recall": None
        if side.recall is None
        else {
            str(most): dict(zip(SIZES, row, strict=True))
            for most, row in zip(PROPOSALS, side.recall, strict=True)
        },
        "recalls": coco.recalls,
        "classes": classes,
        "wrong_by_image": {str(ids[i]): int(wrong[i]) for i in _largest(wrong, len(wrong))},
    }


def _beside_as_json(analysis: Analysis) -> dict[str, Any] | None:
    beside = analysis.beside
    if beside is None:
        return None
    ids, of = analysis.annotations.annotation_ids, analysis.options
    return {
        "AP": _difference(beside.AP),
        "objects_found": _difference(beside.objects),
        "resamplings": of.resamplings,
        "only_first_annotation_ids": ids[beside.only_first],
        "only_second_annotation_ids": ids[beside.only_second],
    }


def _difference(value: Difference) -> dict[str, Any]:
    return {**value._asdict(), "is_clear": value.is_clear}


def _plain(value: Any) -> Any:
    """As JSON has it: no NumPy, and null for NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def _table_section(table: Table) -> str:
    body = html_table(table.head, table.rows, text_columns=table.text_columns)
    legend = ""
    if table.title.endswith("errors cost"):
        texts = ", ".join(f"<b>{kind}</b>: {MEANINGS[kind]}" for kind in KINDS)
        legend = f"<p>{texts}.</p>"
    return f"<section><h2>{escape(table.title)}</h2>{body}{legend}</section>"


def _charts(analysis: Analysis, side: Side) -> str:
    labels = weak_classes(analysis.annotations, side, CURVES)
    curves = [
        Line(
            analysis.annotations.names[label - 1],
            side.coco.recalls.tolist(),
            np.nan_to_num(side.coco.precisions[label - 1]).tolist(),
        )
        for label in labels
    ]
    figures = [
        (
            "Precision over recall",
            f"At IoU {analysis.options.iou_threshold:g}, the classes with the lowest AP.",
            line_chart(curves, "recall", "precision", y_max=1.0, x_range=(0.0, 1.0)),
        )
    ]
    if side.calibration is not None:
        calibration = side.calibration
        seen = calibration.counts > 0
        lines = [
            Line(
                "detections",
                calibration.scores[seen].tolist(),
                calibration.precisions[seen].tolist(),
            ),
            Line("score = precision", [0.0, 1.0], [0.0, 1.0]),
        ]
        figures.append(
            (
                "Precision over score",
                f"ECE {calibration.ece:.3f}, LaECE {calibration.laece:.3f}.",
                line_chart(lines, "score", "precision", y_max=1.0, x_range=(0.0, 1.0)),
            )
        )
    parts = "".join(
        f"<figure><figcaption><b>{escape(name)}</b> {escape(note)}</figcaption>{chart}</figure>"
        for name, note, chart in figures
    )
    title = f"Curves of {side.name}" if len(analysis.sides) > 1 else "Curves"
    return f'<section><h2>{escape(title)}</h2><div class="charts">{parts}</div></section>'


def _picture_sections(
    analysis: Analysis, weakest: int, drawn: int, pictures: PictureOptions
) -> list[str]:
    drawer, names = Drawer(analysis, pictures), analysis.annotations.names
    at = ", ".join(f"{side.score_threshold:.2f}" for side in analysis.sides)
    legend = " ".join(
        f'<b style="color:rgb{COLOURS[kind]}">{word}</b>'
        for kind, word in zip(range(-1, len(KINDS)), ("found", *KINDS), strict=True)
    )
    note = f"<p>Detections from score {at} on. {legend}</p>"
    shown: list[tuple[str, Sequence[int]]] = []
    if analysis.beside is not None:
        images, of = len(analysis.annotations.image_ids), analysis.annotations.image_index
        for who, rows in (
            ("the second finds and the first misses", analysis.beside.only_second),
            ("the first finds and the second misses", analysis.beside.only_first),
        ):
            counts = np.bincount(of[rows], minlength=images)
            shown.append((f"Objects that {who}: {rows.sum():,}", _largest(counts, drawn)))
    shown.append(("Pictures with the most errors", worst(analysis, drawn)))
    for label in weak_classes(analysis.annotations, analysis.sides[-1], weakest):
        found = worst(analysis, min(drawn, OF_CLASS), label)
        shown.append((f"Pictures with the most errors of {names[label - 1]}", found))
    sections = []
    for title, indices in shown:
        if indices:
            views = "".join(
                views_of(drawer.caption(i), drawer.views(i), wide=True) for i in indices
            )
            sections.append(
                f'<section><h2>{escape(title)}</h2>{note}<div class="pictures">{views}</div>'
                "</section>"
            )
    return sections
