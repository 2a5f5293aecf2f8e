# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet analyse`: reads or makes the detections, analyses them, prints and writes the result."""

from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from fastdet.analysing.analysis import Analysis, AnalysisOptions, Side, analyse_side, compare
from fastdet.analysing.coco import proposal_recall
from fastdet.analysing.detections import Found, read_found, write_results
from fastdet.analysing.page import write_json, write_page
from fastdet.analysing.reading import Reading
from fastdet.analysing.sentences import sentences
from fastdet.analysing.tables import Table, tables
from fastdet.data.annotations import Annotations
from fastdet.data.opening import read_split
from fastdet.files import refuse_existing
from fastdet.terminal import escape, progress

KEPT = ("detections", "beside")  # OUT/detections.json of the first, OUT/beside.json of the second


def run(
    detections: Path,
    data: Path,
    out: Path,
    options: AnalysisOptions,
    reading: Reading,
    *,
    split: str = "val",
    beside: Path | None = None,
    weakest: int = 5,
    drawn: int = 12,
    files_anywhere: bool = False,
    overwrite: bool = False,
) -> Analysis:
    """Analyses one detector or two on a split, prints the result and writes its files.

    Args:
        detections: a checkpoint, or a COCO results file (.json).
        data: data set, as for training.
        out: folder for analysis.json and analysis.html, and for the detections of checkpoints.
        options: what counts.
        reading: how checkpoints are applied.
        split: of the data.
        beside: a second checkpoint or results file, to compare with the first.
        weakest: number of classes with a sentence and pictures, those with the lowest AP.
        drawn: the most pictures of a section of the page.
        files_anywhere: see `fastdet.data.open_dataset`.
        overwrite: overwrite files in `out`.

    Raises:
        FileNotFoundError: no such file, data set or split.
        FileExistsError: a file in `out` exists.
        ValueError: an option out of range; detections of other data; classes that differ.
    """
    options.check()
    for name, value, least in (
        ("weakest", weakest, 0),
        ("drawn", drawn, 0),
        ("batch_size", reading.batch_size, 1),
        ("workers", reading.workers, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: expected a number from {least} on, got {value}")
    reading.pictures.check()
    files = [out / "analysis.json", out / "analysis.html"]
    for file in files:
        refuse_existing(file, overwrite)
    given = [path for path in (detections, beside) if path is not None]
    for path, kept in zip(given, KEPT, strict=False):
        _check(path, out / f"{kept}.json", overwrite)
    annotations = read_split(
        data,
        split,
        options.iou_type == "segm",
        exif=reading.pictures.exif,
        files_anywhere=files_anywhere,
    )
    if not annotations.image_ids:
        raise ValueError(f"{annotations.path}: expected images, got none")
    read = [
        _read(path, out / kept, annotations, options, reading, overwrite)
        for path, kept in zip(given, KEPT, strict=False)
    ]
    annotations, read = _in_common(annotations, read)
    sides = [
        _side(path, found, proposals, annotations, options)
        for path, (found, proposals, *_) in zip(given, read, strict=True)
    ]
    both = None if beside is None else compare(annotations, sides[0], sides[1], options.resamplings)
    analysis = Analysis(annotations, split, options, sides, both)
    console = Console()
    for table in tables(analysis):
        console.print(_rich(table, console.width))
    for text in sentences(analysis, weakest):
        print(text)
    write_json(files[0], analysis, weakest)
    write_page(files[1], analysis, weakest=weakest, drawn=drawn, pictures=reading.pictures)
    print(f"analysis: {files[0]}, {files[1]}")
    return analysis


WIDE = 100  # columns of a terminal

Read = tuple[Found, Found | None, np.ndarray, np.ndarray]
"""Detections, proposals, (I,) bool of the images looked at, (C,) bool of the known classes."""


def is_results(path: Path) -> bool:
    """Whether a path is that of a COCO results file; else it is a checkpoint."""
    return path.suffix.lower() == ".json"


def _check(path: Path, kept: Path, overwrite: bool) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint or COCO results file")
    if is_results(path) or not kept.exists() or overwrite:
        return
    raise FileExistsError(
        f"{kept} exists: analyse it in place of the checkpoint, or give --overwrite or another "
        "--out"
    )


def _read(
    path: Path,
    kept: Path,
    annotations: Annotations,
    options: AnalysisOptions,
    reading: Reading,
    overwrite: bool,
) -> Read:
    masks = options.iou_type == "segm"
    if is_results(path):
        found, here = read_found(path, annotations, masks, reading.drop_other_classes)
        return found, None, here.looked_at, here.known
    from fastdet.analysing.checkpoints import detections_of, forget  # imports the detectors

    partial = kept.with_suffix(".partial.npz")
    with progress(escape(path.name)) as bar:
        found, proposals, known = detections_of(
            path,
            annotations,
            reading,
            partial,
            masks=masks,
            overwrite=overwrite,
            progress=bar,
        )
    file = kept.with_suffix(".json")
    write_results(file, found, annotations)
    forget(partial)
    print(f"{len(found):,} detections: {file}")
    return found, proposals, np.ones(len(annotations.image_ids), bool), known


def _in_common(annotations: Annotations, read: list[Read]) -> tuple[Annotations, list[Read]]:
    """The images that all sides looked at, and the objects of the classes that all know."""
    images = np.logical_and.reduce([looked_at for _, _, looked_at, _ in read])
    classes = np.logical_and.reduce([known for *_, known in read])
    if images.all() and classes.all():
        return annotations, read
    if not images.all():
        print(f"{images.sum():,} of {len(images):,} pictures were looked at and are analysed")
    rows = images[annotations.image_index] & classes[annotations.labels - 1]
    new_index = np.cumsum(images) - 1

    def of(found: Found) -> Found:
        kept = images[found.image_index] & classes[found.labels - 1]
        found = found.rows(np.flatnonzero(kept))
        found.image_index[:] = new_index[found.image_index]
        return found

    def of_proposals(found: Found) -> Found:
        found = found.rows(np.flatnonzero(images[found.image_index]))
        found.image_index[:] = new_index[found.image_index]
        return found

    kept = annotations.kept(images, rows)
    everything = np.ones(len(kept.image_ids), bool)
    return kept, [
        (of(found), None if first is None else of_proposals(first), everything, known)
        for found, first, _, known in read
    ]


def _side(
    path: Path,
    found: Found,
    proposals: Found | None,
    annotations: Annotations,
    options: AnalysisOptions,
) -> Side:
    recall = None if proposals is None else proposal_recall(annotations, proposals)
    return analyse_side(annotations, found, options, f"{path.parent.name}/{path.name}", recall)


def _rich(table: Table, width: int) -> RichTable:
    drawn = RichTable(
        title=escape(table.title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    hidden = table.for_wide if width < WIDE else ()
    shown = [column for column, name in enumerate(table.head) if name not in hidden]
    for column in shown:
        is_text = column < table.text_columns
        drawn.add_column(
            escape(table.head[column]),
            justify="left" if is_text else "right",
            no_wrap=not is_text,
            min_width=8 if is_text else None,
        )
    for row in table.rows:
        drawn.add_row(*(escape(row[column]) for column in shown))
    return drawn
