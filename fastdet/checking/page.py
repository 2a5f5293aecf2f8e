# SPDX-License-Identifier: BSD-3-Clause
"""The report of a check as files: check.json with every place, check.html with pictures.

The page shows the first pictures of each finding with what was found on them. They are drawn small,
20 KB each, so that the page can be sent by mail.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from fastdet import __version__
from fastdet.checking.check import Report
from fastdet.checking.findings import KINDS, Finding
from fastdet.checking.sheet import drawing
from fastdet.checking.tables import verdict
from fastdet.files import replacing
from fastdet.report.page import html_table, picture_sheet
from fastdet.report.page import write_page as write_html

PLACES = 50  # of a finding that the page lists; check.json has all


def write_json(path: Path, report: Report) -> None:
    """Writes everything that was found."""
    content = {
        "fastdet": __version__,
        "data": str(report.folder),
        "complete": report.stopped is None,
        "pictures": report.pictures,
        "pictures_looked_at": len(report.files),
        "pictures_decoded": report.options.decode,
        "splits": [asdict(summary) for summary in report.summaries],
        "findings": [_as_json(finding) for finding in report.findings],
        "anchors": [asdict(reach) for reach in report.reaches],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_page(path: Path, report: Report, pictures: int) -> None:
    """Writes the page.

    Args:
        path: of the HTML file.
        report: of the check.
        pictures: the most that are drawn of a finding.
    """
    sections = [_overview(report), _anchors(report)]
    sections += [_section(report, finding, pictures) for finding in report.findings]
    title = f"Check of {report.folder.resolve().name}"
    # A name in a broken file may be no text.
    sections = [section.encode("utf-8", "replace").decode() for section in sections]
    write_html(path, title, f"{verdict(report)}.", sections)


def _as_json(finding: Finding) -> dict[str, Any]:
    kind = KINDS[finding.name]
    places = [
        {
            key: value
            for key, value in (
                ("split", spot.split),
                ("image_id", _plain(spot.image_id)),
                ("file_name", spot.file_name),
                ("annotation_id", _plain(spot.annotation_id)),
                ("detail", spot.detail),
                (
                    "also",
                    [
                        {"split": o.split, "image_id": o.image_id, "file_name": o.file_name}
                        for o in spot.also
                    ],
                ),
            )
            if value not in (None, "", [])
        }
        for spot in finding.places
    ]
    return {
        "name": finding.name,
        "severity": kind.severity,
        "split": finding.split,
        "count": finding.count,
        "meaning": kind.meaning,
        "advice": kind.advice,
        "detail": finding.detail,
        "places": places,
    }


def _plain(identity: object) -> object:
    """An id as JSON has it; of a broken file it may be anything."""
    return identity if identity is None or type(identity) is int else str(identity)


def _overview(report: Report) -> str:
    head = ["split", "format", "pictures", "without objects", "objects", "crowds", "per picture"]
    head += ["small", "medium", "large", "picture sizes"]
    rows = [
        [
            one.split,
            one.format,
            *(f"{n:,}" for n in (one.pictures, one.without_objects, one.objects, one.crowds)),
            "{} / {:g} / {}".format(*one.objects_per_picture),
            *(f"{n:,}" for n in (one.small, one.medium, one.large)),
            _some([f"{size} ({n:,})" for size, n in one.picture_sizes.items()], 3),
        ]
        for one in report.summaries
    ]
    names = dict.fromkeys(name for one in report.summaries for name in one.categories)
    categories = [
        [name, *(f"{one.categories.get(name, 0):,}" for one in report.summaries)] for name in names
    ]
    findings = [
        [KINDS[f.name].severity, f.name, f.split or "all", f"{f.count:,}"] for f in report.findings
    ]
    columns = ["category", *(one.split for one in report.summaries)]
    return (
        f"<section>{html_table(head, rows, text_columns=2)}<h2>Findings</h2>"
        f"{html_table(['severity', 'finding', 'split', 'count'], findings, text_columns=3)}"
        f"<h2>Categories</h2>{html_table(columns, categories)}</section>"
    )


def _anchors(report: Report) -> str:
    if not report.reaches:
        return ""
    first = report.reaches[0]
    what = "an anchor with an IoU of at least" if first.has_anchors else "a location inside:"
    rows = [
        [
            reach.split,
            row.group,
            f"{row.objects:,}",
            f"{row.at_50:.1%}",
            f"{row.at_70:.1%}" if first.has_anchors else "",
            f"{row.median_size:.0f}",
        ]
        for reach in report.reaches
        for row in reach.rows
    ]
    head = [
        "split",
        "objects",
        "number",
        *(["0.5", "0.7"] if first.has_anchors else ["inside", ""]),
    ]
    return (
        f"<section><h2>Objects and {escape(first.model)}</h2><p>Objects that have {what} "
        f"{'0.5 and 0.7, ' if first.has_anchors else ''}when it is trained at {first.min_size} to "
        f"{first.max_size} pixels; and their median size in these pixels. The levels have the "
        f"strides {', '.join(map(str, first.strides))}.</p>"
        f"{html_table([*head, 'median size'], rows, text_columns=2)}</section>"
    )


def _section(report: Report, finding: Finding, pictures: int) -> str:
    kind = KINDS[finding.name]
    drawings = list(drawing(report, finding, pictures))
    sheet = picture_sheet(drawings) if drawings else ""
    places = [str(spot) for spot in finding.places]
    more = f"<li>and {len(places) - PLACES:,} more</li>" if len(places) > PLACES else ""
    listed = "".join(f"<li>{escape(place)}</li>" for place in places[:PLACES]) + more
    details = f"<details><summary>places</summary><ul>{listed}</ul></details>" if places else ""
    said = f"<p>{escape(finding.detail)}</p>" if finding.detail else ""
    return (
        f'<section><h2><span class="{kind.severity}">{kind.severity}</span> '
        f"{finding.name}: {finding.count:,} in {escape(finding.split or 'all splits')}</h2>"
        f"<p>{kind.meaning} {kind.advice}</p>{said}{sheet}{details}</section>"
    )


def _some(texts: Sequence[str], most: int) -> str:
    rest = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *rest])
