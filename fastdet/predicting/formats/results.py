# SPDX-License-Identifier: BSD-3-Clause
"""The detections on many pictures as a few NumPy columns, whatever they are written to.

56 bytes a detection. Boxes are x, y, width, height as in COCO's results, so that reading and
writing these changes no bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import msgspec
import numpy as np


class Detection(msgspec.Struct, gc=False):
    """One of COCO's results."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float
    segmentation: Any = None


@dataclass(frozen=True)
class ResultImage:
    """A picture; what is not known is None.

    Attributes:
        id: COCO's image id.
        file_name: below the image folder.
        height, width: in pixels; None too where the picture could not be read.
    """

    id: int
    file_name: str | None = None
    height: int | None = None
    width: int | None = None

    def __str__(self) -> str:
        return f"image id {self.id}" + (f" ({self.file_name})" if self.file_name else "")


@dataclass(frozen=True)
class Results:
    """Detections; label l is the class `classes[l - 1]` and the category `category_ids[l - 1]`.

    Attributes:
        images: all pictures, those without detections too, if `has_images`.
        classes: the names, without background.
        category_ids: of COCO, ascending.
        image_index: (D,) position in `images`.
        labels: (D,) from 1 on.
        boxes_xywh: (D, 4) float64 in pixels.
        scores: (D,) float64.
        segmentations: (D,) COCO's, as in JSON; None where no detection has one.
        has_images: whether images and classes were described. Otherwise the images are those with
            detections, and the names of the classes are their ids.
    """

    images: list[ResultImage]
    classes: list[str]
    category_ids: list[int]
    image_index: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray
    segmentations: list[Any] | None = None
    has_images: bool = True

    @classmethod
    def of_coco(
        cls,
        images: Sequence[dict[str, Any]],
        categories: Sequence[dict[str, Any]],
        detections: Sequence[dict[str, Any]],
    ) -> "Results":
        """From COCO's records: of images, of categories, and of results.

        Args:
            images: with id, and file_name, height and width where they are known.
            categories: with id and name; labels follow the order of the ids.
            detections: with image_id, category_id, bbox, score and perhaps segmentation.
        """
        return cls.of_detections(images, categories, msgspec.convert(detections, list[Detection]))

    @classmethod
    def of_detections(
        cls,
        images: Sequence[dict[str, Any]],
        categories: Sequence[dict[str, Any]],
        detections: Sequence[Detection],
    ) -> "Results":
        """As `of_coco`; all ids are among those of the images and categories."""
        categories = sorted(categories, key=lambda category: category["id"])
        index_of = {image["id"]: index for index, image in enumerate(images)}
        label_of = {category["id"]: label for label, category in enumerate(categories, 1)}
        masks = [found.segmentation for found in detections]
        return cls(
            [
                ResultImage(i["id"], i.get("file_name"), i.get("height"), i.get("width"))
                for i in images
            ],
            [str(category["name"]) for category in categories],
            [category["id"] for category in categories],
            np.array([index_of[found.image_id] for found in detections], np.int64),
            np.array([label_of[found.category_id] for found in detections], np.int64),
            np.fromiter(
                chain.from_iterable([found.bbox for found in detections]),
                np.float64,
                4 * len(detections),
            ).reshape(-1, 4),
            np.array([found.score for found in detections], np.float64),
            masks if any(mask is not None for mask in masks) else None,
        )

    @cached_property
    def boxes(self) -> np.ndarray:
        """(D, 4) xyxy."""
        return np.column_stack(
            [self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]]
        )

    def rows(self) -> list[np.ndarray]:
        """The detections of each image, in their order."""
        order = np.argsort(self.image_index, kind="stable")
        ends = np.cumsum(np.bincount(self.image_index, minlength=len(self.images)))
        return np.split(order, ends[:-1]) if len(ends) else []

    def kept(self, rows: np.ndarray, scores: np.ndarray) -> "Results":
        """Some of the detections, in the order of `rows`, with new scores."""
        masks = self.segmentations
        return replace(
            self,
            image_index=self.image_index[rows],
            labels=self.labels[rows],
            boxes_xywh=self.boxes_xywh[rows],
            scores=scores,
            segmentations=None if masks is None else [masks[row] for row in rows],
        )
