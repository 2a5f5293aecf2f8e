# SPDX-License-Identifier: BSD-3-Clause
"""Pascal VOC: `Annotations/`, `JPEGImages/`, `ImageSets/Main/{split}.txt` and `labels.txt`.

Pixels count from 1 and xmax is the last one inside, as in the VOC data sets. Numbers are decimals
with all their digits: see `voc_corners`. Crowd regions are "difficult" objects, which VOC's
evaluation ignores. `labels.txt` keeps the order of the classes, and those without objects.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

from fastdet.data.annotations import Annotations
from fastdet.data.formats.voc_file import WRITTEN_HERE, voc_corners
from fastdet.data.images import image_size
from fastdet.data.writers.plan import Notes, SplitPlan

_UNFIT = re.compile(r"[\x00-\x1f\x7f\ufffe\uffff\ud800-\udfff]|^\s|\s$|^\"|^$")


def write(plans: list[SplitPlan], folder: Path, notes: Notes) -> None:
    """Writes the XML files and the lists.

    Raises:
        ValueError: a name that XML or a list cannot hold.
    """
    classes = list(dict.fromkeys(name for plan in plans for name in plan.annotations.names))
    for name in classes:
        check_name(name, "class", plans[0].annotations.path)
    for plan in plans:
        _write_split(plan, folder, notes)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def _write_split(plan: SplitPlan, folder: Path, notes: Notes) -> None:
    annotations = plan.annotations
    if annotations.masks is not None:
        what = f"masks of {plan.name} left out, as the XML files of VOC have boxes alone"
        notes.add(what, len(annotations.masks))
    stems = []
    sizes = annotations.image_sizes.tolist()
    for (source, _), name, size, rows in zip(
        plan.sources(), plan.file_names, sizes, plan.rows(), strict=True
    ):
        path = PurePosixPath(name)
        stem = path.with_suffix("").as_posix()
        check_name(stem, "file", annotations.path)
        stems.append(stem)
        if not all(size):
            size = image_size(source)
        objects = "".join(_object(annotations, int(row)) for row in rows)
        file = folder / "Annotations" / f"{stem}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(head(path.name, *size) + objects + "</annotation>\n", encoding="utf-8")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{stem}\n" for stem in stems)
    (lists / f"{plan.name}.txt").write_text(text, encoding="utf-8")


def check_name(name: str, kind: str, path: Path) -> None:
    """Raises ValueError for a name that XML or a list cannot hold."""
    if _UNFIT.search(name):
        raise ValueError(
            f"{path}: expected {kind} names of printable characters without spaces at their ends, "
            f"as the files of VOC can hold, got {name!r}"
        )


def head(name: str, height: int, width: int) -> str:
    """The text of a file before its objects."""
    return (
        f"<annotation>\n\t<filename>{escape(name)}</filename>\n"
        f"\t<source>\n\t\t<database>{WRITTEN_HERE}</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n"
        "\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n"
    )


def _object(annotations: Annotations, row: int) -> str:
    name = annotations.names[annotations.labels[row] - 1]
    return object_element(name, annotations.boxes_xywh[row].tolist(), bool(annotations.crowd[row]))


def object_element(
    name: str, xywh: Sequence[float], difficult: bool = False, score: float | None = None
) -> str:
    """The text of an object; with its score if it was detected."""
    x, y, width, height = xywh
    x1, y1, x2, y2 = voc_corners((x, y, width, height))
    scored = "" if score is None else f"\t\t<score>{score}</score>\n"
    return (
        f"\t<object>\n\t\t<name>{escape(name)}</name>\n\t\t<pose>Unspecified</pose>\n"
        f"\t\t<truncated>0</truncated>\n\t\t<difficult>{int(difficult)}</difficult>\n"
        f"\t\t<bndbox>\n\t\t\t<xmin>{x1}</xmin>\n\t\t\t<ymin>{y1}</ymin>\n"
        f"\t\t\t<xmax>{x2}</xmax>\n\t\t\t<ymax>{y2}</ymax>\n\t\t</bndbox>\n{scored}\t</object>\n"
    )
