# SPDX-License-Identifier: BSD-3-Clause
"""Image ids and category ids from an annotation file: of pictures by path, of classes by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fastdet.data.coco_file import file_name, read_json, records
from fastdet.predicting.pictures import Picture


@dataclass(frozen=True)
class Ids:
    """The ids of a COCO file.

    Attributes:
        file: its path.
        images, categories: its records; categories may be empty.
    """

    file: Path
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def read_ids(annotations: Path) -> Ids:
    """The image ids and category ids of a COCO file; it needs no annotations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a COCO file.
    """
    content = read_json(annotations)
    images = records(annotations, content, "images", ("id", "file_name"))
    for image in images:
        file_name(annotations, image, anywhere=True)
    given = {"categories": content.get("categories") or []}
    return Ids(annotations, images, records(annotations, given, "categories", ("id", "name")))


def match_images(pictures: Sequence[Picture], ids: Ids | None) -> list[dict[str, Any]]:
    """COCO's image records of the pictures: id, file_name and, from an annotation file, the size.

    File names are compared part by part from the end of the path. A record matches a picture if all
    parts of its file_name agree, or all parts of the picture's path relative to the given folder.
    Of several matching records, the one with the most equal parts is used.

    Raises:
        ValueError: a picture has no record or several equally good records; or two pictures have
            the same record.
    """
    if ids is None:
        return [{"id": i, "file_name": str(p.name)} for i, p in enumerate(pictures, 1)]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in ids.images:
        by_name.setdefault(PurePath(record["file_name"]).name, []).append(record)
    matches, pictures_of = [], {}
    for picture in pictures:
        record = _record_of(picture, by_name.get(picture.name.name, []), ids.file)
        other = pictures_of.setdefault(record["id"], picture)
        if other is not picture:
            raise ValueError(
                f"{ids.file}: image id {record['id']}, {record['file_name']}, would be both "
                f"{other.path} and {picture.path}"
            )
        matches.append(record)
    return matches


def _record_of(
    picture: Picture, candidates: Sequence[dict[str, Any]], annotations: Path
) -> dict[str, Any]:
    path = picture.path.absolute().parts
    agreeing: dict[int, list[dict[str, Any]]] = {}
    for record in candidates:
        name = PurePath(record["file_name"]).parts
        pairs = list(zip(reversed(path), reversed(name), strict=False))
        agree = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        if agree >= min(len(name), len(picture.name.parts)):
            agreeing.setdefault(agree, []).append(record)
    if not agreeing:
        raise ValueError(f"{annotations} has no image named {picture.name}")
    best = agreeing[max(agreeing)]
    if len(best) > 1:
        names = ", ".join(str(record["file_name"]) for record in best[:3])
        raise ValueError(f"{annotations}: {picture.path} may be any of {names}")
    return best[0]
