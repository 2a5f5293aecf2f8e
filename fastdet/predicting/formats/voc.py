# SPDX-License-Identifier: BSD-3-Clause
"""Pascal VOC: Annotations/, an XML file a picture, each object with its score, and labels.txt.

The files are those of `fastdet.data.writers.voc` and one element more, <score>, which readers of
VOC skip. Masks have no place. A picture without detections has a file without objects, one of
unknown size no file.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fastdet.data.writers.voc import check_name, head, object_element
from fastdet.files import replacing
from fastdet.predicting.format_options import CsvOptions
from fastdet.predicting.formats.files import check_text, picture_files_in, size_of
from fastdet.predicting.formats.results import ResultImage, Results


def paths(images: list[ResultImage], out: Path) -> list[Path]:
    """The files that `write` makes.

    Raises:
        ValueError: a name that is not UTF-8; see `picture_files_in`.
    """
    for image in images:
        check_text(image)
    return [*picture_files_in(out / "Annotations", ".xml", images), out / "labels.txt"]


def check_classes(classes: Sequence[str], csv: CsvOptions) -> None:
    """Raises ValueError for a name that XML or a list cannot hold, or of two classes."""
    for number, name in enumerate(classes):
        check_name(name, "class", Path("labels.txt"))
        if name in classes[:number]:
            raise ValueError(f"expected classes of different names, got {name!r} twice")


def write(results: Results, out: Path, csv: CsvOptions) -> None:
    """Writes the XML files and the list of classes.

    Raises:
        ValueError: a name that XML or a list cannot hold, or of two classes; see
            `picture_files_in`.
    """
    check_classes(results.classes, csv)
    *files, classes = paths(results.images, out)
    for file, image, rows in zip(files, results.images, results.rows(), strict=True):
        if not len(rows) and not image.height:
            continue
        height, width = size_of(image)
        objects = [
            object_element(
                results.classes[results.labels[row] - 1],
                results.boxes_xywh[row].tolist(),
                score=float(results.scores[row]),
            )
            for row in rows
        ]
        name = PurePosixPath(str(image.file_name)).name
        text = head(name, height, width) + "".join(objects) + "</annotation>\n"
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with replacing(classes) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in results.classes), encoding="utf-8")
