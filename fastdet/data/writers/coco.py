# SPDX-License-Identifier: BSD-3-Clause
"""COCO: `{split}.json` beside `images/`. It holds all of `Annotations`, ids and masks too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdet.data.annotations import Annotations
from fastdet.data.segmentations import as_json
from fastdet.data.writers.plan import Notes, SplitPlan


def write(plans: list[SplitPlan], folder: Path, notes: Notes) -> None:
    """Writes the annotation files; one record a line."""
    for plan in plans:
        lists = records(plan.annotations, plan.file_names)
        with (folder / f"{plan.name}.json").open("w", encoding="utf-8") as file:
            file.write("{")
            for number, (name, of_list) in enumerate(lists.items()):
                file.write(f'{"," if number else ""}\n"{name}": [')
                for position, record in enumerate(of_list):
                    file.write(",\n" if position else "\n")
                    file.write(json.dumps(record))
                file.write("\n]")
            file.write("\n}\n")


def records(annotations: Annotations, file_names: list[str]) -> dict[str, Iterator[dict[str, Any]]]:
    """The records of a COCO file, by the name of their list.

    Args:
        annotations: of one split.
        file_names: (I,) as the file is to have them.
    """
    return {
        "images": _images(annotations, file_names),
        "categories": (
            {"id": identity, "name": name}
            for identity, name in zip(annotations.category_ids, annotations.names, strict=True)
        ),
        "annotations": _annotations(annotations),
    }


def _images(annotations: Annotations, file_names: list[str]) -> Iterator[dict[str, Any]]:
    sizes = annotations.image_sizes.tolist()
    for identity, name, (height, width) in zip(
        annotations.image_ids, file_names, sizes, strict=True
    ):
        # An unknown size is null: read from the picture.
        known = {"width": width or None, "height": height or None}
        yield {"id": identity, "file_name": name, **known}


def _annotations(annotations: Annotations) -> Iterator[dict[str, Any]]:
    rows = zip(
        annotations.annotation_ids.tolist(),
        annotations.image_index.tolist(),
        annotations.labels.tolist(),
        annotations.boxes_xywh.tolist(),
        annotations.areas.tolist(),
        annotations.crowd.tolist(),
        strict=True,
    )
    for row, (identity, index, label, box, area, crowd) in enumerate(rows):
        record: dict[str, Any] = {
            "id": identity,
            "image_id": annotations.image_ids[index],
            "category_id": annotations.category_ids[label - 1],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        if annotations.masks is not None:
            record["segmentation"] = as_json(annotations.masks[row])
        yield record
