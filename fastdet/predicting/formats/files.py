# SPDX-License-Identifier: BSD-3-Clause
"""The file of each picture in a format with one file a picture.

Invariant: no file lies outside the folder, and no two pictures share one.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fastdet.predicting.formats.results import ResultImage


def picture_files_in(folder: Path, suffix: str, images: Iterable[ResultImage]) -> list[Path]:
    """The files in `folder` that belong to the pictures: cam1/a.jpg -> cam1/a.txt.

    Raises:
        ValueError: a picture has no name, one that leads out of the folder, or the file of another.
    """
    found, owners = [], {}
    for image in images:
        if image.file_name is None:
            raise ValueError(
                f"{image}: expected its file name, got none: the format has a file a picture, "
                "named after it; images.json beside the results has the names"
            )
        path = PurePosixPath(image.file_name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"{image}: expected a file name inside the folder of the pictures")
        file = folder / path.with_suffix(suffix)
        other = owners.setdefault(file, image)
        if other is not image:
            raise ValueError(f"{other} and {image} would share {file}: predict them separately")
        found.append(file)
    return found


def size_of(image: ResultImage) -> tuple[int, int]:
    """Height and width; ValueError if they are not known."""
    if not image.height or not image.width:
        raise ValueError(
            f"{image}: expected its height and width, got none: images.json beside the results or "
            "the annotations have them"
        )
    return image.height, image.width


def check_text(image: ResultImage) -> None:
    """Raises ValueError for a file name that a text file cannot hold."""
    try:
        str(image.file_name).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"image id {image.id} ({image.file_name!a}): expected a file name in UTF-8"
        ) from None
