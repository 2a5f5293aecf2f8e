# SPDX-License-Identifier: BSD-3-Clause
"""Writing a data set with all its splits and pictures in another format.

A format is one file here with one function, which writes the annotation files into a new folder.
Invariant: the folder appears under its name only once everything is written, and nothing that
exists is overwritten. Boxes are written so that reading them gives the same numbers: to the bit in
COCO and Pascal VOC, to 1e-9 pixels in YOLO, whose values are fractions of the picture's sides.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from fastdet.data.annotations import Annotations
from fastdet.data.dataset import DetectionDataset
from fastdet.data.writers import coco, voc, yolo
from fastdet.data.writers.pictures import Images, check_images, place_images
from fastdet.data.writers.plan import Notes, SplitPlan, plan_splits
from fastdet.files import naming, refuse_content

WRITERS: dict[str, Callable[[list[SplitPlan], Path, Notes], None]] = {
    "coco": coco.write,
    "yolo": yolo.write,
    "voc": voc.write,
}


def write_dataset(
    splits: Mapping[str, Annotations | DetectionDataset],
    out: str | Path,
    format: str,
    images: Images = "copy",
) -> list[str]:
    """Writes a data set folder that fastdet and other tools read.

    Args:
        splits: by name; of a data set, all its annotations, whatever its items leave out.
        out: a folder that does not exist yet or is empty.
        format: "coco", "yolo" or "voc".
        images: "copy" copies the pictures, byte for byte; "link" makes hard links, or symbolic
            links where the file systems differ; "none" writes the annotations alone.

    Returns:
        One sentence for each kind of information that the format cannot hold, with its count.

    Raises:
        FileExistsError: `out` has content.
        FileNotFoundError: pictures are missing.
        ValueError: another format; data that the format cannot hold without a loss of pictures.
    """
    if format not in WRITERS:
        raise ValueError(f"format: expected {', '.join(WRITERS)}, got {format!r}")
    check_images(images)
    refuse_content(Path(out))
    out = Path(out).resolve()
    annotations = {
        name: split.annotations if isinstance(split, DetectionDataset) else split
        for name, split in splits.items()
    }
    plans = plan_splits(annotations, format)
    notes = Notes()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with naming(out):
            partial.mkdir()
            place_images(plans, partial, images)
            WRITERS[format](plans, partial, notes)
            if out.exists():
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes.sentences()
