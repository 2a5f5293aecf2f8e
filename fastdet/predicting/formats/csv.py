# SPDX-License-Identifier: BSD-3-Clause
"""CSV as competitions take it: `image_id,PredictionString`, one line a picture.

The string holds a few words of each detection, one detection after the other. Competitions differ
in the words, in the number of the first class and in what stands for nothing, so these are options.
"""

import csv as standard_csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from fastdet.files import replacing
from fastdet.predicting.format_options import CsvOptions
from fastdet.predicting.formats.files import check_text, size_of
from fastdet.predicting.formats.results import ResultImage, Results

HEADER = ("image_id", "PredictionString")


def paths(images: list[ResultImage], out: Path) -> list[Path]:
    """The file that `write` makes."""
    return [out / "detections.csv"]


def write(results: Results, out: Path, csv: CsvOptions) -> None:
    """Writes detections.csv.

    Raises:
        ValueError: see `write_file`.
    """
    write_file(results, out / "detections.csv", csv)


def write_file(results: Results, file: Path, csv: CsvOptions) -> None:
    """Writes a line for each image, in their order.

    Raises:
        ValueError: an option out of range; two images of one name, an image without a name, or
            without a size where one is needed.
    """
    csv.check()
    names = image_names(results.images, csv)
    lines = [
        (name, _string(results, image, rows, csv))
        for name, image, rows in zip(names, results.images, results.rows(), strict=True)
    ]
    with replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        writer = standard_csv.writer(opened, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(lines)


def check_classes(classes: Sequence[str], csv: CsvOptions) -> None:
    """A name is written as it is."""


def image_names(images: list[ResultImage], csv: CsvOptions) -> list[str]:
    """What identifies each image in the file.

    Raises:
        ValueError: two images of one name, or an image without a name in UTF-8.
    """
    names: dict[str, ResultImage] = {}
    for image in images:
        if csv.csv_image == "id":
            name = str(image.id)
        elif image.file_name is None:
            raise ValueError(
                f"{image}: expected its file name, got none: give --csv-image id, or images.json "
                "beside the results"
            )
        else:
            name = image.file_name
            if csv.csv_image == "stem":
                name = PurePosixPath(name.replace("\\", "/")).stem
            check_text(image)
        other = names.setdefault(name, image)
        if other is not image:
            raise ValueError(
                f"{other} and {image} would both be {name}: give --csv-image file_name or id"
            )
    return list(names)


def _string(results: Results, image: ResultImage, rows: np.ndarray, csv: CsvOptions) -> str:
    if not len(rows):
        return csv.csv_nothing
    boxes = results.boxes[rows]
    if csv.csv_fractions:
        height, width = size_of(image)
        boxes = boxes / (width, height, width, height)
    texts = []
    for row, (x1, y1, x2, y2) in zip(rows.tolist(), boxes.tolist(), strict=True):
        label = int(results.labels[row])
        words = {
            "label": label - 1 + csv.first_label,
            "name": results.classes[label - 1],
            "score": _number(float(results.scores[row])),
            **{"x1": _number(x1), "y1": _number(y1), "x2": _number(x2), "y2": _number(y2)},
            **{"cx": _number((x1 + x2) / 2), "cy": _number((y1 + y2) / 2)},
            **{"w": _number(x2 - x1), "h": _number(y2 - y1)},
        }
        texts += [str(words[word]) for word in csv.csv_row.split()]
    return " ".join(texts)


def _number(value: float) -> str:
    """Seven digits, float32's, and no exponent, which a competition's parser may not know."""
    text = np.format_float_positional(np.float32(value), trim="-")
    return "0" if text == "-0" else text
