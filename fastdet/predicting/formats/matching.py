# SPDX-License-Identifier: BSD-3-Clause
"""Whether two files mean the same pictures and classes: by name, never by position.

Two file names are of one picture if all their parts agree, compared from the end, as far as the
shorter one has parts: `a.jpg` and `val/a.jpg`, but not `cam1/a.jpg` and `cam2/a.jpg`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from fastdet.predicting.formats.results import ResultImage, Results


def agree(name: str, other: str) -> bool:
    """Whether two file names can be of one picture."""
    parts, others = _parts(name), _parts(other)
    shorter = min(len(parts), len(others))
    return parts[:shorter] == others[:shorter]


def same_names(names: Sequence[str], others: Sequence[str]) -> list[list[int]]:
    """For each name the positions of the other names that can be of the same picture."""
    of_last: dict[tuple[str, ...], list[int]] = {}
    for index, name in enumerate(others):
        of_last.setdefault(_parts(name)[:1], []).append(index)
    return [
        [index for index in of_last.get(_parts(name)[:1], []) if agree(name, others[index])]
        for name in names
    ]


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path, the last one first."""
    return PurePosixPath(name.replace("\\", "/")).parts[::-1]


def same_ids(files: Sequence[Path], parts: Sequence[Results]) -> list[Results]:
    """The same results, all with the images and the classes that they have together.

    Raises:
        ValueError: an id that means different things in two files, or that one of them lacks.
    """
    described = [(file, part) for file, part in zip(files, parts, strict=True) if part.has_images]
    if not described:
        return _united(files, parts)
    first, base = described[0]
    for file, part in described[1:]:
        _refuse_other_images(first, base, file, part)
        _refuse_other_classes(first, base, file, part)
    for file, part in zip(files, parts, strict=True):
        for what, ids, known in (
            ("image", [i.id for i in part.images], {i.id for i in base.images}),
            ("category", part.category_ids, set(base.category_ids)),
        ):
            strange = next((i for i in ids if i not in known), None)
            if strange is not None:
                raise ValueError(f"{file}: expected the {what} ids of {first}, got {strange}")
    return [renumbered(part, base) for part in parts]


def _united(files: Sequence[Path], parts: Sequence[Results]) -> list[Results]:
    """Without descriptions: the ids of all files, which must meet."""
    for what, of in (
        ("image", lambda part: {image.id for image in part.images}),
        ("category", lambda part: set(part.category_ids)),
    ):
        for file, part in zip(files[1:], parts[1:], strict=True):
            if of(part) and of(parts[0]) and not of(part) & of(parts[0]):
                raise ValueError(
                    f"expected results of the same data, got {files[0]} and {file}, which have no "
                    f"{what} id in common"
                )
    images = [ResultImage(i) for i in sorted({i.id for part in parts for i in part.images})]
    ids = sorted({i for part in parts for i in part.category_ids})
    base = replace(parts[0], images=images, classes=list(map(str, ids)), category_ids=ids)
    return [renumbered(part, base) for part in parts]


def renumbered(part: Results, base: Results) -> Results:
    """The detections with the images and classes of `base`, which has all of theirs."""
    index = {image.id: i for i, image in enumerate(base.images)}
    label = {category_id: i for i, category_id in enumerate(base.category_ids, 1)}
    indices = np.array([index[image.id] for image in part.images], np.int64)
    labels = np.array([0, *(label[i] for i in part.category_ids)], np.int64)
    return replace(
        base,
        image_index=indices[part.image_index],
        labels=labels[part.labels],
        boxes_xywh=part.boxes_xywh,
        scores=part.scores,
        segmentations=part.segmentations,
    )


def _refuse_other_images(first: Path, base: Results, file: Path, part: Results) -> None:
    known = {image.id: image for image in base.images}
    own = {image.id: image for image in part.images}
    for lacking, having, images, others in (
        (file, first, known, own),
        (first, file, own, known),
    ):
        alone = next((image for i, image in images.items() if i not in others), None)
        if alone is not None:
            raise ValueError(
                f"expected results of the same pictures, but {alone} is only in {having}, not in "
                f"{lacking}"
            )
    for i, image in own.items():
        theirs = known[i]
        sizes = (image.height, image.width), (theirs.height, theirs.width)
        other_size = all(map(all, sizes)) and sizes[0] != sizes[1]
        if other_size or not agree(str(image.file_name), str(theirs.file_name)):
            raise ValueError(
                f"expected results of the same pictures, but image id {i} is {_shown(theirs)} in "
                f"{first} and {_shown(image)} in {file}"
            )


def _refuse_other_classes(first: Path, base: Results, file: Path, part: Results) -> None:
    known = dict(zip(base.category_ids, base.classes, strict=True))
    own = dict(zip(part.category_ids, part.classes, strict=True))
    for i in sorted(known.keys() | own.keys()):
        if known.get(i) != own.get(i):
            raise ValueError(
                f"expected results of the same classes, but category id {i} is "
                f"{known.get(i, 'not')} in {first} and {own.get(i, 'not')} in {file}"
            )


def _shown(image: ResultImage) -> str:
    return f"{image.file_name} of {image.width} x {image.height}"
