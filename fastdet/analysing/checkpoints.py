# SPDX-License-Identifier: BSD-3-Clause
"""The detections of a checkpoint on a split, for an analysis.

The networks take the most time of an analysis, so what they found is kept: every half minute in a
file beside the result, from which a later run with the same checkpoint and data goes on. Each
write is whole or not at all.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from fastdet.analysing.coco import PROPOSALS
from fastdet.analysing.detections import Found
from fastdet.analysing.reading import Reading
from fastdet.data import Annotations, Classes, DetectionDataset, collate, eval_transforms
from fastdet.files import replacing
from fastdet.models.batch import restore
from fastdet.models.detector import Detector
from fastdet.ops.mask_rle import Rle
from fastdet.training.detector_module import device_for, load_detector, with_segmentations

WRITE_EVERY = 30.0  # seconds


class Columns:
    """Columns of detections that grow image by image."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.masks: list[Rle] | None = None

    def add(self, index: int, boxes: Any, labels: Any, scores: Any, masks: Any = None) -> None:
        """Adds the detections of an image: tensors of boxes xyxy, labels and scores."""
        boxes = boxes.double().cpu().numpy().reshape(-1, 4)
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        labels = labels.cpu().numpy().astype(np.int64)
        self.parts.append((np.full(len(xywh), index), labels, xywh, scores.double().cpu().numpy()))
        if masks is not None:
            self.masks = (self.masks or []) + masks

    def found(self, path: Path) -> Found:
        """The detections so far, in the order of their images."""
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
        columns = [np.concatenate(c) for c in zip(empty, *self.parts, strict=True)]
        return Found(path, columns[0], columns[1], columns[2], columns[3], self.masks)

    def as_arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """For an .npz file."""
        found = self.found(Path())
        arrays = {
            "image_index": found.image_index,
            "labels": found.labels,
            "boxes": found.boxes_xywh,
            "scores": found.scores,
        }
        if self.masks is not None:
            texts = [_bytes(mask["counts"]) for mask in self.masks]
            arrays["counts"] = np.frombuffer(b"".join(texts), np.uint8)
            arrays["lengths"] = np.array([len(text) for text in texts], np.int64)
            arrays["sizes"] = np.array([mask["size"] for mask in self.masks], np.int64)
        return {f"{prefix}_{name}": array for name, array in arrays.items()}

    @classmethod
    def of_arrays(cls, prefix: str, content: Any) -> "Columns":
        """What `as_arrays` gave."""
        columns = cls()
        names = ("image_index", "labels", "boxes", "scores")
        columns.parts = [tuple(content[f"{prefix}_{name}"] for name in names)]
        if f"{prefix}_counts" in content:
            ends = np.cumsum(content[f"{prefix}_lengths"]).tolist()
            text, sizes = content[f"{prefix}_counts"].tobytes(), content[f"{prefix}_sizes"].tolist()
            columns.masks = [
                {"size": size, "counts": text[start:end]}  # pyright: ignore
                for start, end, size in zip([0, *ends], ends, sizes, strict=False)
            ]
        return columns


def detections_of(
    checkpoint: Path,
    annotations: Annotations,
    reading: Reading,
    kept: Path,
    *,
    masks: bool,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Found, Found | None, np.ndarray]:
    """Runs a checkpoint on all images of a split.

    Args:
        checkpoint: a file that a training wrote.
        annotations: of the split, with an image folder; masks only if they are compared.
        reading: how.
        kept: file for what was found so far; one of the same work is continued. It is removed by
            `forget`, when the result is written.
        masks: keep the masks, which the detector must have.
        overwrite: replace a file of other work.
        progress: called with the number of images that are done, and of all.

    Returns:
        The detections, with the labels of the annotations; the proposals of a two-stage detector,
        up to a thousand of an image; (C,) bool, the classes that the checkpoint knows.

    Raises:
        FileNotFoundError: no such file; no such picture.
        FileExistsError: `kept` is of other work.
        ValueError: not a checkpoint; other classes; no masks; a picture that cannot be read.
    """
    module = load_detector(checkpoint)
    if masks and not module.model.learns_masks:
        raise ValueError(
            f"iou_type segm: expected a detector with masks, such as mask_rcnn, got "
            f"{type(module.model).__name__} in {checkpoint}"
        )
    classes = Classes(module.classes, checkpoint, drop_others=reading.drop_other_classes)
    options = asdict(reading.pictures)
    dataset = DetectionDataset(annotations, eval_transforms(), classes=classes, **options)
    labels_of_ids = {identity: label for label, identity in enumerate(annotations.category_ids, 1)}
    labels = np.array([0, *(labels_of_ids[i] for i in dataset.category_ids)])
    known = np.isin(np.arange(1, len(annotations.names) + 1), labels)
    work = _work(checkpoint, annotations, masks)
    done, found, proposals = _resumed(kept, work, overwrite)
    module = module.to(device_for(module))
    left = [index for index in range(len(dataset)) if index not in done]
    loader = DataLoader(
        Subset(dataset, left),
        batch_size=reading.batch_size,
        num_workers=reading.workers,
        collate_fn=collate,
    )
    written, number = time.monotonic(), 0
    try:
        for images, _ in loader:
            indices = left[number : number + len(images)]
            number += len(images)
            images = [image.to(module.device) for image in images]
            _detect(module.model, images, indices, labels, found, proposals, masks)
            done.update(indices)
            progress(len(done), len(dataset))
            if time.monotonic() - written > WRITE_EVERY:
                _keep(kept, work, done, found, proposals)
                written = time.monotonic()
    finally:  # an error and Ctrl-C lose nothing
        if number:
            _keep(kept, work, done, found, proposals)
    first = proposals.found(checkpoint).sorted(annotations) if module.model.proposes else None
    return found.found(checkpoint).sorted(annotations), first, known


def forget(kept: Path) -> None:
    """Removes the file of `detections_of`, whose detections are in another one now."""
    kept.unlink(missing_ok=True)


@torch.inference_mode()
def _detect(
    model: Detector,
    images: list[torch.Tensor],
    indices: list[int],
    labels: np.ndarray,
    found: Columns,
    proposals: Columns,
    masks: bool,
) -> None:
    batch = model.pad(images)
    if model.proposes:
        first, detections = model.proposals_and_detections(batch)
        for index, one in zip(indices, restore(first, batch).to_list(), strict=True):
            rows = {name: value[: PROPOSALS[-1]] for name, value in one.items()}
            proposals.add(index, rows["boxes"], rows["labels"], rows["scores"])
    else:
        detections = model.detect(batch)
    restored = restore(detections, batch)
    answers = with_segmentations(restored, images) if masks else restored.to_list()
    for index, one in zip(indices, answers, strict=True):
        objects = one["labels"] > 0  # a RetinaNet may say background
        own = torch.from_numpy(labels)[one["labels"].cpu()][objects.cpu()]
        runs = one.get("segmentations")
        if runs is not None:
            runs = [run for run, kept in zip(runs, objects.tolist(), strict=True) if kept]
        found.add(index, one["boxes"][objects], own, one["scores"][objects], runs)


def _work(checkpoint: Path, annotations: Annotations, masks: bool) -> str:
    """What a file of kept detections belongs to."""
    status = checkpoint.stat()
    return json.dumps(
        {
            "checkpoint": [checkpoint.name, status.st_size, status.st_mtime_ns],
            "annotations": str(annotations.path),
            "images": len(annotations.image_ids),
            "masks": masks,
        }
    )


def _keep(path: Path, work: str, done: set[int], found: Columns, proposals: Columns) -> None:
    with replacing(path) as temporary:
        np.savez(
            temporary,
            work=np.array(work),
            done=np.array(sorted(done), np.int64),
            **found.as_arrays("found"),  # pyright: ignore[reportArgumentType]
            **proposals.as_arrays("proposals"),  # pyright: ignore[reportArgumentType]
        )


def _resumed(path: Path, work: str, overwrite: bool) -> tuple[set[int], Columns, Columns]:
    """What an earlier run did of the same work."""
    if not path.exists():
        return set(), Columns(), Columns()
    try:
        with np.load(path, allow_pickle=False) as content:
            if str(content["work"]) == work:
                done = set(content["done"].tolist())
                return (
                    done,
                    Columns.of_arrays("found", content),
                    Columns.of_arrays("proposals", content),
                )
    except (OSError, ValueError, KeyError, EOFError):
        pass  # no such file of ours
    if not overwrite:
        raise FileExistsError(
            f"{path} has the detections of an unfinished analysis of another checkpoint or data: "
            "give --overwrite, or another --out"
        )
    return set(), Columns(), Columns()


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts
