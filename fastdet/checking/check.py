# SPDX-License-Identifier: BSD-3-Clause
"""Checks a data set: annotations, pictures, duplicates, and how its objects suit a detector.

Nothing ends the check but a folder without a data set: a file that cannot be read, a broken picture
or an interruption is part of the result.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastdet.checking.boxes import box_findings
from fastdet.checking.categories import category_findings
from fastdet.checking.duplicates import duplicate_findings
from fastdet.checking.findings import Finding, Severity, worst_first
from fastdet.checking.pictures import PictureFile, look_at_all, picture_findings, picture_paths
from fastdet.checking.reading import CheckedSplit, read_splits
from fastdet.checking.segmentations import segmentation_findings
from fastdet.checking.summary import Summary, summary_of
from fastdet.training.options import ModelName, PictureOptions
from fastdet.training.stopping import Stopped

if TYPE_CHECKING:
    from fastdet.checking.anchors import AnchorReach


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and how.

    Attributes:
        decode: decode every picture; without, only headers are read and pictures not compared.
        flipped: find mirror images among near-duplicates too.
        model, min_size, max_size: the detector whose anchors are compared with the objects, and the
            size that it is trained with; None: no detector.
        pictures: how pictures are read.
        files_anywhere: allow file names that lead out of the image folder.
        workers: threads; None: one for each core, up to 8.
    """

    decode: bool = True
    flipped: bool = False
    model: ModelName | None = "faster_rcnn"
    min_size: int = 800
    max_size: int = 1333
    pictures: PictureOptions = PictureOptions()
    files_anywhere: bool = False
    workers: int | None = None

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        self.pictures.check()
        for name in ("min_size", "max_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a number from 1 on, got {value}")


@dataclass
class Report:
    """The result of a check.

    Attributes:
        folder: the data set.
        options: of the check.
        splits: those that could be read.
        summaries: of these.
        findings: the worst first.
        reaches: of the detector's anchors, for each split.
        files: the pictures that were looked at.
        pictures: how many there are to look at.
        stopped: what interrupted the check; None if it is complete.
    """

    folder: Path
    options: CheckOptions
    splits: list[CheckedSplit] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    reaches: "list[AnchorReach]" = field(default_factory=list)
    files: dict[Path, PictureFile] = field(default_factory=dict)
    pictures: int = 0
    stopped: KeyboardInterrupt | Stopped | None = None

    def count(self, severity: Severity) -> int:
        """The number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def check_dataset(
    folder: Path, options: CheckOptions, progress: Callable[[int, int], None] = lambda _n, _of: None
) -> Report:
    """Checks every split of a data set.

    Args:
        folder: of any format that `fastdet.data.formats` knows.
        options: what is checked.
        progress: is called with the number of pictures so far, and of all.

    Returns:
        The report. After Ctrl-C or SIGTERM it has what was found so far, and says so.

    Raises:
        FileNotFoundError: no data set of a known format.
        ValueError: an option out of range.
    """
    options.check()
    report = Report(folder, options)
    report.splits, findings = read_splits(folder, options.pictures.exif, options.files_anywhere)
    report.summaries = [summary_of(split) for split in report.splits]
    try:
        findings += category_findings(report.splits)
        for split in report.splits:
            findings += box_findings(split)
            findings += segmentation_findings(split)
        findings += _look_at_anchors(report)
        findings += _look_at_pictures(report, progress)
    except (KeyboardInterrupt, Stopped) as error:
        report.stopped = error
        findings += picture_findings(report.splits, report.files)
    report.findings = worst_first(findings)
    return report


def _look_at_anchors(report: Report) -> list[Finding]:
    options = report.options
    if options.model is None or not any(len(s.annotations.labels) for s in report.splits):
        return []
    from fastdet.checking.anchors import anchor_reach, grids_of  # imports the detectors

    model, grids = grids_of(options.model, options.min_size, options.max_size)
    findings = []
    for split in report.splits:
        reach, finding = anchor_reach(split, options.model, model, grids)
        report.reaches.append(reach)
        findings += [finding] if finding.places else []
    return findings


def _look_at_pictures(report: Report, progress: Callable[[int, int], None]) -> list[Finding]:
    options = report.options
    paths = picture_paths(report.splits)
    report.pictures = len(paths)
    workers = options.workers or min(8, os.cpu_count() or 1)
    look_at_all(
        paths,
        options.pictures,
        options.decode,
        workers,
        report.files,
        lambda number: progress(number, len(paths)),
    )
    findings = picture_findings(report.splits, report.files)
    try:
        return findings + duplicate_findings(report.splits, report.files, options.flipped)
    except (KeyboardInterrupt, Stopped) as error:
        report.stopped = error
        return findings
