# SPDX-License-Identifier: BSD-3-Clause
"""The report of a check in the terminal: few lines, the worst first."""

from collections.abc import Iterator

from rich.table import Table

from fastdet.checking.check import Report
from fastdet.checking.findings import KINDS, SEVERITIES, Finding
from fastdet.terminal import escape

SHOWN = 500  # characters of a place: names and messages of a broken file may have any length
CATEGORIES = 15  # rows of the terminal's table of categories; the page has all
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def tables(report: Report) -> Iterator[Table]:
    """What the splits hold, the categories, the anchors, and the findings."""
    if report.summaries:
        yield _splits(report)
        yield _categories(report)
    if report.reaches:
        yield _anchors(report)
    if report.findings:
        yield _findings(report)


def verdict(report: Report) -> str:
    """One line: the number of findings by severity, and whether all was looked at."""
    counts = [(report.count(severity), severity) for severity in SEVERITIES]
    words = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for n, name in counts)
    read = sum(not file.problem for file in report.files.values())
    how = "decoded" if report.options.decode else "opened, not decoded"
    line = f"{words}; {read:,} of {report.pictures:,} pictures {how}"
    return f"{line}; stopped before the end" if report.stopped else line


def first_places(finding: Finding) -> str:
    """Where a finding is first, and what the reader said; of categories, the first few."""
    named = [spot for spot in finding.places[:1] if spot.file_name or spot.annotation_id]
    places = named or finding.places[:8]
    texts = [*([finding.detail] if finding.detail else []), *map(str, places)]
    more = ["..."] if not named and len(finding.places) > len(places) else []
    text = "; ".join([*texts, *more])
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _splits(report: Report) -> Table:
    table = Table(title=escape(str(report.folder)))
    table.add_column("split")
    rows: dict[str, list[str]] = {}
    for one in report.summaries:
        table.add_column(escape(one.split), justify="right")
        low, median, high = one.objects_per_picture
        cells = {
            "format": one.format,
            "pictures": f"{one.pictures:,}",
            "without objects": f"{one.without_objects:,}",
            "objects": f"{one.objects:,}",
            "crowds": f"{one.crowds:,}",
            "objects a picture: least, median, most": f"{low}, {median:g}, {high}",
            "small objects (area < 32²)": _share(one.small, one.objects),
            "medium (32² to 96²)": _share(one.medium, one.objects),
            "large (area > 96²)": _share(one.large, one.objects),
            "picture sizes": f"{len(one.picture_sizes)}",
            "most frequent": next(iter(one.picture_sizes), "-"),
        }
        for name, text in cells.items():
            rows.setdefault(name, []).append(text)
    for name, texts in rows.items():
        table.add_row(name, *texts)
    return table


def _categories(report: Report) -> Table:
    totals: dict[str, int] = {}
    for one in report.summaries:
        for name, count in one.categories.items():
            totals[name] = totals.get(name, 0) + count
    ordered = sorted(totals, key=lambda name: -totals[name])
    table = Table(title="objects of each category")
    table.add_column("category")
    for one in report.summaries:
        table.add_column(escape(one.split), justify="right")
    for name in ordered[:CATEGORIES]:
        counts = (one.categories.get(name) for one in report.summaries)
        table.add_row(escape(name), *("-" if n is None else f"{n:,}" for n in counts))
    if len(ordered) > CATEGORIES:
        table.caption = f"and {len(ordered) - CATEGORIES} categories with fewer objects"
    return table


def _anchors(report: Report) -> Table:
    reach = report.reaches[0]
    table = Table(
        title=f"{escape(reach.split)}: {reach.model} at {reach.min_size} to {reach.max_size} pixels"
    )
    table.add_column("objects")
    table.add_column("number", justify="right")
    found = ("anchor of IoU >= 0.5", ">= 0.7") if reach.has_anchors else ("location inside",)
    for name in (*found, "median size"):
        table.add_column(name, justify="right")
    for row in reach.rows:
        if row.kind == "category":
            continue
        shares = (row.at_50, row.at_70)[: len(found)]
        texts = [f"{row.objects:,}", *(f"{share:.1%}" for share in shares)]
        table.add_row(row.group, *texts, f"{row.median_size:.0f}")
    table.caption = (
        f"strides {', '.join(map(str, reach.strides))}; median size: square root of the area, in "
        "pixels that the network sees"
    )
    return table


def _findings(report: Report) -> Table:
    table = Table(title="findings", show_lines=True)
    table.add_column("finding", no_wrap=True)
    table.add_column("split: count", no_wrap=True)
    table.add_column("what it means, what to do, and where it is first", ratio=1)
    by_name: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_name.setdefault(finding.name, []).append(finding)
    for name, findings in by_name.items():
        kind = KINDS[name]
        colour = _COLOURS[kind.severity]
        places = dict.fromkeys(map(first_places, findings))
        table.add_row(
            f"[{colour}]{kind.severity}[/{colour}]\n{name}",
            escape("\n".join(f"{f.split or 'all'}: {f.count:,}" for f in findings)),
            f"{kind.meaning} {kind.advice}\n[dim]{escape(next(iter(places)))}[/dim]",
        )
    return table


def _share(count: int, total: int) -> str:
    return f"{count / total:.0%}" if total else "-"
