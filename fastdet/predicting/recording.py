# SPDX-License-Identifier: BSD-3-Clause
"""What was found so far, on disk at least every half minute."""

import time
from pathlib import Path
from typing import Any

from fastdet.predicting.format_options import ResultsFormat
from fastdet.predicting.formats import CsvOptions, Results, write
from fastdet.predicting.formats.coco import write_json

WRITE_EVERY = 30.0  # seconds


class Record:
    """Writes OUT/detections.json and OUT/images.json, and at the end another format.

    Args:
        out: folder of the results.
        images: COCO's records; more may be appended.
        categories: COCO's records.
        format: written at the end; coco has its files already.
        csv: options of the format csv.

    Attributes:
        detections: COCO's results.
    """

    def __init__(
        self,
        out: Path,
        images: list[dict[str, Any]],
        categories: list[dict[str, Any]],
        format: ResultsFormat,
        csv: CsvOptions,
    ) -> None:
        self.out, self.images, self.categories = out, images, categories
        self.format: ResultsFormat = format
        self.csv = csv
        self.detections: list[dict[str, Any]] = []
        self._written = time.monotonic()

    def add(self, detections: list[dict[str, Any]]) -> None:
        """Takes the results of a picture."""
        self.detections += detections
        if time.monotonic() - self._written > WRITE_EVERY:
            self._write()

    def close(self) -> None:
        """Writes everything."""
        self._write()
        if self.format != "coco":
            results = Results.of_coco(self.images, self.categories, self.detections)
            write(results, self.out, self.format, self.csv)

    def _write(self) -> None:
        # In this order: a kill between the two leaves no detection of an unknown image.
        write_json(self.out / "images.json", {"images": self.images, "categories": self.categories})
        write_json(self.out / "detections.json", self.detections)
        self._written = time.monotonic()
