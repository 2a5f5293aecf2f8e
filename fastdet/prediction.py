# SPDX-License-Identifier: BSD-3-Clause
"""Runs a checkpoint on picture files: writes annotated pictures and COCO results.

Work is not lost: results are written at least every half minute. A picture that cannot be read is
reported and skipped. Existing files are overwritten only on request; input pictures never are.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, get_args

import torch
from torch import Tensor

from fastdet.data import Classes, eval_transforms, read_image
from fastdet.data.coco_file import file_name, read_json, records
from fastdet.data.picture_files import SUFFIXES, pictures_below
from fastdet.evaluation import coco_results
from fastdet.evaluation.pictures import draw_boxes
from fastdet.files import refuse_existing, replacing
from fastdet.models.batch import restore
from fastdet.training.detector_module import DetectorModule, load_detector
from fastdet.training.options import PictureOptions, Show

WRITE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        path: the file.
        name: its path relative to the given folder, or its file name.
    """

    path: Path
    name: PurePath


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


@dataclass
class Prediction:
    """The detections on pictures.

    Attributes:
        detections: COCO results.
        unreadable: for each picture that could not be read, the reason.
    """

    detections: list[dict[str, Any]] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)


def predict(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    score_threshold: float = 0.5,
    annotations: Path | None = None,
    *,
    show: Show = "detections",
    num_proposals: int = 20,
    pictures: PictureOptions = PictureOptions(),
    overwrite: bool = False,
) -> Prediction:
    """Detect objects on picture files and write the results.

    Writes OUT/<name>.jpg for each picture, with its detections or its proposals,
    OUT/detections.json (COCO results) and OUT/images.json (a COCO file with the pictures and
    categories, which maps image ids to file names). A picture that cannot be read is reported on
    stderr and has no detections.

    Args:
        checkpoint: a checkpoint of a training.
        images: picture files and folders. The pictures of a folder and its subfolders are processed
            in the order of their names.
        out: folder for the results.
        score_threshold: detections with a lower score are dropped everywhere.
        annotations: COCO file whose image ids are used. None: ids count from 1.
        show: what is drawn: detections, or proposals of the first stage of a two-stage detector.
        num_proposals: maximum number of proposals that are drawn, the best ones.
        pictures: how pictures are read.
        overwrite: whether to overwrite existing files in OUT.

    Returns:
        The detections, and the pictures that could not be read.

    Raises:
        FileNotFoundError: no picture.
        FileExistsError: an output file exists, or is an input picture.
        ValueError: an option out of range; `annotations` has no image for a picture, or several;
            show is "proposals" and the detector has one stage.
    """
    pictures.check()
    if show not in get_args(Show):
        raise ValueError(f"show: expected {' or '.join(get_args(Show))}, got {show}")
    if num_proposals < 1:
        raise ValueError(f"num_proposals: expected a number from 1 on, got {num_proposals}")
    files = picture_files(images)
    ids = None if annotations is None else read_ids(annotations)
    image_records = match_images(files, ids)
    drawings = [out / name for name in drawing_names(files)]
    results, index = out / "detections.json", out / "images.json"
    _check_outputs([*drawings, results, index], files, overwrite)
    module = load_detector(checkpoint)
    if show == "proposals" and not module.model.proposes:
        raise ValueError(
            "show=proposals: expected a detector of two stages, such as faster_rcnn, got "
            f"{type(module.model).__name__}, which has one"
        )
    if torch.cuda.is_available():
        module = module.cuda()
    category_ids = _category_ids(module, checkpoint, ids)
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(category_ids, module.classes[1:], strict=True)
    ]
    prediction, written = Prediction(), time.monotonic()
    try:
        for picture, record, drawing in zip(files, image_records, drawings, strict=True):
            try:
                image = read_image(picture.path, _stated_size(record), **asdict(pictures))
            except (FileNotFoundError, ValueError) as error:
                prediction.unreadable[picture.path] = str(error)
                print(f"fastdet: left out: {error}", file=sys.stderr, flush=True)
                continue
            found = detect(module, [image], score_threshold)[0]
            record["height"], record["width"] = image.shape[-2:]
            if show == "detections":
                _draw(drawing, image, found, module.classes)
            else:
                _draw(drawing, image, propose(module, image, num_proposals), None)
            prediction.detections += coco_results([record["id"]], [found], category_ids)
            if time.monotonic() - written > WRITE_EVERY:
                _write_json(results, prediction.detections)
                written = time.monotonic()
    finally:  # keep the detections so far if the user stops the run or drawing fails
        _write_json(results, prediction.detections)
        _write_json(index, {"images": image_records, "categories": categories})
    return prediction


def _category_ids(module: DetectorModule, checkpoint: Path, ids: Ids | None) -> list[int]:
    """The category id of each label, from 1 on: from the annotation file, by class name."""
    if ids is None or not ids.categories:
        return module.category_ids
    names = ["background", *(str(category["name"]) for category in ids.categories)]
    labels = Classes(module.classes, checkpoint, drop_others=True).labels_of(names, ids.file)
    id_of = dict(zip(labels[1:].tolist(), (c["id"] for c in ids.categories), strict=True))
    return [id_of[label] for label in range(1, len(module.classes))]


def _draw(
    path: Path, image: Tensor, found: dict[str, Tensor], classes: Sequence[str] | None
) -> None:
    drawing = draw_boxes(
        image,
        found["boxes"],
        found["labels"],
        classes,
        found["scores"],
        found.get("masks"),
    )
    with replacing(path) as temporary:
        drawing.save(temporary, quality=92)


@torch.inference_mode()
def detect(
    module: DetectorModule, images: Sequence[Tensor], score_threshold: float
) -> list[dict[str, Tensor]]:
    """Detections of uint8 RGB images (3, H, W), in pixels of each image, on the CPU, best first."""
    transform = eval_transforms()
    ready = [transform(image).to(module.device) for image in images]
    detections = []
    for found in module.model(ready):
        chosen = found["scores"] >= score_threshold
        detections.append({name: value[chosen].cpu() for name, value in found.items()})
    return detections


@torch.inference_mode()
def propose(module: DetectorModule, image: Tensor, number: int) -> dict[str, Tensor]:
    """The best proposals of the first stage for a uint8 RGB image (3, H, W), on the CPU.

    Returns:
        At most `number` boxes in pixels of the image, best first; the scores are the probabilities
        of an object, the labels the levels of the pyramid.
    """
    batch = module.model.pad([eval_transforms()(image).to(module.device)])
    (found,) = restore(module.model.propose(batch), batch).to_list()
    return {name: value[:number].cpu() for name, value in found.items()}


def picture_files(paths: Sequence[Path]) -> list[Picture]:
    """The picture files in `paths`, and those in folders in `paths`, at any depth.

    See `pictures_below`.

    Raises:
        FileNotFoundError: a path does not exist, or there is no picture.
    """
    pictures: list[Picture] = []
    for path in paths:
        if path.is_dir():
            pictures += [Picture(f, f.relative_to(path)) for f in sorted(pictures_below(path))]
        elif path.exists():
            pictures.append(Picture(path, PurePath(path.name)))
        else:
            raise FileNotFoundError(f"{path} does not exist")
    if not pictures:
        places = ", ".join(map(str, paths))
        raise FileNotFoundError(f"no picture ({' '.join(SUFFIXES)}) in {places}")
    return pictures


def drawing_names(pictures: Sequence[Picture]) -> list[PurePath]:
    """The file name of each picture's drawing, relative to the output folder: a.png -> a.jpg.

    If there are a.png and a.tif, their drawings are a.png.jpg and a.tif.jpg.

    Raises:
        ValueError: two pictures have the same name relative to the given folders.
    """
    names = [picture.name.with_suffix(".jpg") for picture in pictures]
    uses = Counter(names)
    for i, picture in enumerate(pictures):
        if uses[names[i]] > 1:
            names[i] = picture.name.with_name(f"{picture.name.name}.jpg")
    seen: dict[PurePath, Picture] = {}
    for name, picture in zip(names, pictures, strict=True):
        other = seen.setdefault(name, picture)
        if other is not picture:
            raise ValueError(
                f"{other.path} and {picture.path} would both be drawn as {name}: give the folder "
                "that holds both"
            )
    return names


def _check_outputs(outputs: Sequence[Path], pictures: Sequence[Picture], overwrite: bool) -> None:
    inputs = {picture.path.resolve() for picture in pictures}
    for path in outputs:
        if path.resolve() in inputs:
            raise FileExistsError(f"{path} is an input picture: give another folder for the output")
        refuse_existing(path, overwrite)


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


def _stated_size(record: dict[str, Any]) -> tuple[int, int] | None:
    height, width = record.get("height"), record.get("width")
    return (height, width) if height and width else None


def _write_json(path: Path, content: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))
