# SPDX-License-Identifier: BSD-3-Clause
"""One split of a data set folder: where it lies, and how it is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastdet.data.annotations import Annotations
from fastdet.data.images import Exif


class Reader(Protocol):
    """Reads the annotations of one split."""

    def __call__(self, *, masks: bool, exif: Exif, files_anywhere: bool) -> Annotations:
        """Reads them.

        Args:
            masks: read the segmentations too; what has none is left out, with a warning.
            exif: see `read_image`; where the size of a picture is read from its header.
            files_anywhere: allow file names that lead out of the image folder.
        """
        ...


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        format: its name in `FORMATS`.
        path: the file or folder with the annotations, for messages.
        read: reads them.
    """

    format: str
    path: Path
    read: Reader
