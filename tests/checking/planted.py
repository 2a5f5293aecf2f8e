# SPDX-License-Identifier: BSD-3-Clause
"""A small data set without a defect, into which a test plants one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdet.checking.check import CheckOptions, Report, check_dataset
from fastdet.checking.findings import Finding

WIDTH, HEIGHT = 160, 120
NO_MODEL = CheckOptions(model=None, workers=2)


def scene(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture of smooth random colours, unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def annotation(identity: int, image_id: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    area = abs(bbox[2] * bbox[3]) if len(bbox) == 4 else 0
    record = {"id": identity, "image_id": image_id, "category_id": 1, "bbox": bbox, "area": area}
    return {**record, "iscrowd": 0, **more}


class DataSet:
    """A folder in COCO format: train with images 1 to 4, val with 11 and 12; 2 objects in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        self.train = self._split(range(1, 5))
        self.val = self._split(range(11, 13))

    def _split(self, ids: range) -> dict[str, Any]:
        images = []
        for identity in ids:
            name = f"{identity:03d}.png"
            scene(identity).save(self.picture(name))
            images.append({"id": identity, "file_name": name, "width": WIDTH, "height": HEIGHT})
        annotations = [
            annotation(10 * i + k, i, [20 + 8 * i + k, 30.5, 40, 50 - i], category_id=1 + k)
            for i in ids
            for k in (0, 1)
        ]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        return {"images": images, "annotations": annotations, "categories": categories}

    def picture(self, name: str) -> Path:
        return self.folder / "images" / name

    def plant(self, *records: dict[str, Any]) -> None:
        """Adds annotations to train."""
        self.train["annotations"] += records

    def add_image(self, identity: int, name: str, split: str = "train", **more: Any) -> None:
        """Adds an image of the usual size with one object."""
        content = getattr(self, split)
        record = {"id": identity, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}
        content["images"].append(record)
        content["annotations"].append(annotation(10 * identity, identity, [31.5, 22, 40, 30]))

    def write(self) -> None:
        for name in ("train", "val"):
            (self.folder / f"{name}.json").write_text(json.dumps(getattr(self, name)))

    def check(self, options: CheckOptions = NO_MODEL) -> Report:
        self.write()
        return check_dataset(self.folder, options)

    def found(self, options: CheckOptions = NO_MODEL) -> dict[str, Finding]:
        """The findings by name; each kind occurs in one split here."""
        findings = self.check(options).findings
        by_name = {finding.name: finding for finding in findings}
        assert len(by_name) == len(findings)
        return by_name


Plant = Callable[[DataSet], None]


def ids(finding: Finding) -> list[tuple[Any, Any]]:
    """The image id and annotation id of each place."""
    return [(spot.image_id, spot.annotation_id) for spot in finding.places]
