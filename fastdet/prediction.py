# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint applied to picture files: annotated pictures and COCO results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdet.data import eval_transforms, read_image
from fastdet.evaluation import coco_results
from fastdet.evaluation.pictures import draw_boxes
from fastdet.files import replacing
from fastdet.training.detector_module import DetectorModule, load_detector

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def predict(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    score_threshold: float = 0.5,
    annotations: Path | None = None,
) -> int:
    """Detect on picture files and write what was found.

    Writes OUT/<name>.jpg for each picture, OUT/detections.json (COCO results) and OUT/images.json
    (a COCO file of the pictures and categories, which maps image ids to file names).

    Args:
        checkpoint: a file that a training wrote.
        images: picture files, and folders whose pictures are taken in name order.
        out: folder for the results.
        score_threshold: detections below it are left out everywhere.
        annotations: COCO file whose image ids are used; without it, they count from 1.

    Returns:
        The number of detections.
    """
    files = picture_files(images)
    records = image_records(files, annotations)
    module = load_detector(checkpoint)
    if torch.cuda.is_available():
        module = module.cuda()
    results: list[dict[str, Any]] = []
    for file, record in zip(files, records, strict=True):
        image = read_image(file, _stated_size(record))
        found = detect(module, [image], score_threshold)[0]
        picture = draw_boxes(
            image,
            found["boxes"],
            found["labels"],
            module.classes,
            found["scores"],
            found.get("masks"),
        )
        with replacing(out / f"{file.stem}.jpg") as temporary:
            picture.save(temporary, quality=92)
        results += coco_results([record["id"]], [found], module.category_ids)
        record["height"], record["width"] = image.shape[-2:]
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(module.category_ids, module.classes[1:], strict=True)
    ]
    _write_json(out / "detections.json", results)
    _write_json(out / "images.json", {"images": records, "categories": categories})
    return len(results)


@torch.inference_mode()
def detect(
    module: DetectorModule, images: Sequence[Tensor], score_threshold: float
) -> list[dict[str, Tensor]]:
    """Detections of uint8 RGB images (3, H, W), in their pixels, on the CPU, best first."""
    transform = eval_transforms()
    ready = [transform(image).to(module.device) for image in images]
    detections = []
    for found in module.model(ready):
        chosen = found["scores"] >= score_threshold
        detections.append({name: value[chosen].cpu() for name, value in found.items()})
    return detections


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """The picture files among `paths`, folders opened one level deep.

    Raises:
        FileNotFoundError: a path does not exist, or there is no picture at all.
        ValueError: two pictures have one name, so that their results would overwrite each other.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist")
    if not files:
        places = ", ".join(map(str, paths))
        raise FileNotFoundError(f"no picture ({' '.join(SUFFIXES)}) in {places}")
    by_stem: dict[str, Path] = {}
    for file in files:
        if (other := by_stem.setdefault(file.stem, file)) is not file:
            raise ValueError(f"{other} and {file} would both be written to {file.stem}.jpg")
    return files


def image_records(files: Sequence[Path], annotations: Path | None) -> list[dict[str, Any]]:
    """COCO's image records of the files: id, file_name and, from an annotation file, the size."""
    if annotations is None:
        return [{"id": i, "file_name": file.name} for i, file in enumerate(files, 1)]
    known = json.loads(annotations.read_text(encoding="utf-8"))["images"]
    by_name = {Path(record["file_name"]).name: record for record in known}
    missing = [file.name for file in files if file.name not in by_name]
    if missing:
        raise ValueError(f"{annotations} has no image named {missing[0]} ({len(missing)} missing)")
    return [by_name[file.name] for file in files]


def _stated_size(record: dict[str, Any]) -> tuple[int, int] | None:
    return (record["height"], record["width"]) if "height" in record else None


def _write_json(path: Path, content: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))
