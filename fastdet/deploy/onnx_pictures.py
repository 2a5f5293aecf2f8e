# SPDX-License-Identifier: BSD-3-Clause
"""An exported ONNX file on pictures: resizing, running, and the way back to their pixels.

It stands for a user's own program: ONNX Runtime on the CPU, and what the file says of itself. Cost:
one run of the network for each picture.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdet.numpy
from fastdet.data import DetectionDataset
from fastdet.deploy.metadata import metadata
from fastdet.evaluation import CocoEvaluator, CocoMetrics

Arrays = dict[str, np.ndarray[Any, Any]]


class OnnxDetector:
    """An exported file that is ready to run.

    Args:
        path: an .onnx file of `export_detector` or `export_candidates`.

    Raises:
        ValueError, FileNotFoundError: see `metadata`.
    """

    def __init__(self, path: Path) -> None:
        self.about = metadata(path)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        batch = self.session.get_inputs()[0].shape[0]
        self.batch = batch if isinstance(batch, int) else 1

    def inputs(self, picture: Tensor) -> Arrays:
        """What the file takes, from RGB (3, h, w) uint8.

        The picture is resized as in training, or smaller where it would not fit. A file of several
        images gets it several times.
        """
        picture_size, room = picture.shape[1:], self.about["image_size"]
        smallest = self.about["min_size"]
        smallest = smallest if isinstance(smallest, int) else smallest[-1]
        scale = min(
            smallest / min(picture_size),
            self.about["max_size"] / max(picture_size),
            *(most / side for most, side in zip(room, picture_size, strict=True)),
        )
        size = [
            min(most, max(1, int(scale * side)))
            for most, side in zip(room, picture_size, strict=True)
        ]
        pixels = F.interpolate(picture[None] / 255, size, mode="bilinear", align_corners=False)
        images = np.zeros((self.batch, 3, *room), np.float32)
        images[:, :, : size[0], : size[1]] = pixels.numpy()
        return {"images": images, "sizes": np.array([size] * self.batch, np.int64)}

    def run(self, feed: Arrays) -> Arrays:
        """The file's outputs, by name, for what `inputs` gives."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, map(np.asarray, self.session.run(None, feed)), strict=True))

    def detect(self, picture: Tensor) -> Arrays:
        """Boxes (K, 4) in pixels of the picture (3, h, w), scores (K,) and labels (K,)."""
        feed = self.inputs(picture)
        found = self.run(feed)
        if "counts" in found:
            rows = slice(found["counts"][0])
            boxes, scores, labels = (found[x][0, rows] for x in ("boxes", "scores", "labels"))
        else:
            boxes, scores, labels = fastdet.numpy.multiclass_nms(
                found["boxes"][0], found["scores"][0], **self.about["suppression"]
            )
        back = np.array(picture.shape[1:]) / feed["sizes"][0]  # height, width
        return {"boxes": boxes * back[[1, 0, 1, 0]], "scores": scores, "labels": labels}


def coco_metrics(detector: OnnxDetector, dataset: DetectionDataset) -> CocoMetrics:
    """COCO metrics of the boxes that an .onnx file finds in a data set without transforms."""
    evaluator = CocoEvaluator(dataset.annotations, dataset.category_ids)
    for index, image_id in enumerate(dataset.image_ids):
        found = detector.detect(dataset[index][0])
        evaluator.update([image_id], [{name: torch.from_numpy(found[name]) for name in found}])
    return evaluator.compute()
