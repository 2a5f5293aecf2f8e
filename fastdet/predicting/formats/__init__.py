# SPDX-License-Identifier: BSD-3-Clause
"""What detections are written to: COCO results, CSV of competitions, YOLO, Pascal VOC.

Each module has the same three functions: `paths(images, out)`, the files that it makes,
`check_classes(classes, csv)`, and `write(results, out, csv)`. Files are replaced as a whole; who
calls asks before overwriting.
"""

from collections.abc import Sequence
from pathlib import Path

from fastdet.predicting.format_options import CsvOptions, ResultsFormat
from fastdet.predicting.formats import coco, csv, voc, yolo
from fastdet.predicting.formats.coco import read_results
from fastdet.predicting.formats.results import ResultImage, Results

__all__ = [
    "FORMATS",
    "CsvOptions",
    "ResultImage",
    "Results",
    "check_classes",
    "paths",
    "read_results",
    "write",
]

FORMATS = {"coco": coco, "csv": csv, "yolo": yolo, "voc": voc}


def paths(images: list[ResultImage], out: Path, format: ResultsFormat) -> list[Path]:
    """The files that `write` makes, to be checked before the work.

    Raises:
        ValueError: an unknown format; a name of a picture that the format cannot use.
    """
    return _module(format).paths(images, out)


def check_classes(classes: Sequence[str], format: ResultsFormat, csv: CsvOptions) -> None:
    """Raises ValueError for a name of a class that the format cannot hold."""
    _module(format).check_classes(classes, csv)


def write(
    results: Results, out: Path, format: ResultsFormat, csv: CsvOptions = CsvOptions()
) -> list[Path]:
    """Writes results in a format.

    Args:
        results: of all pictures.
        out: folder, which is made.
        format: coco: detections.json and images.json; csv: detections.csv; yolo: labels/ and
            classes.txt; voc: Annotations/ and labels.txt.
        csv: options of csv.

    Returns:
        `paths`; a picture that was not read has no file.

    Raises:
        ValueError: what the format cannot hold.
    """
    module = _module(format)
    module.write(results, out, csv)
    return module.paths(results.images, out)


def _module(format: str):
    if format not in FORMATS:
        raise ValueError(f"format: expected {', '.join(FORMATS)}, got {format}")
    return FORMATS[format]
