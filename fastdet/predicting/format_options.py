# SPDX-License-Identifier: BSD-3-Clause
"""The options of what results become. Importing this is quick, as the command line needs."""

from dataclasses import dataclass
from typing import Literal, get_args

ResultsFormat = Literal["coco", "csv", "yolo", "voc"]
EnsembleMethod = Literal["wbf", "nms", "soft-nms"]
ConfType = Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"]
CsvImage = Literal["stem", "file_name", "id"]

ROW_WORDS = ("label", "name", "score", "x1", "y1", "x2", "y2", "cx", "cy", "w", "h")


@dataclass(frozen=True)
class CsvOptions:
    """What a competition expects in its CSV file.

    Attributes:
        first_label: With csv, number of the first class.
        csv_row: With csv, what is written of a detection: words out of label (a number), name
            (of the class), score, x1, y1, x2, y2, cx, cy (centre), w and h.
        csv_fractions: With csv, coordinates as fractions of the picture's width and height.
        csv_image: With csv, what identifies a picture: its file name without suffix, its file name,
            or its image id.
        csv_nothing: With csv, what is written of a picture without detections.
    """

    first_label: Literal[0, 1] = 0
    csv_row: str = "label score x1 y1 x2 y2"
    csv_fractions: bool = False
    csv_image: CsvImage = "stem"
    csv_nothing: str = ""

    def check(self) -> None:
        """Raises ValueError for a value that no option has."""
        if self.first_label not in (0, 1):
            raise ValueError(f"first_label: expected 0 or 1, got {self.first_label}")
        words = self.csv_row.split()
        unknown = [word for word in words if word not in ROW_WORDS]
        if unknown or not words:
            raise ValueError(
                f"csv_row: expected words out of {' '.join(ROW_WORDS)}, got "
                f"{unknown[0] if unknown else 'none'}"
            )
        if self.csv_image not in get_args(CsvImage):
            raise ValueError(
                f"csv_image: expected {', '.join(get_args(CsvImage))}, got {self.csv_image}"
            )
