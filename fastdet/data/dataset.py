# SPDX-License-Identifier: BSD-3-Clause
"""Detection data of any format as a torch Dataset.

An item costs one image decode and a slice of the annotations. The dataset holds plain lists and
NumPy arrays and no open file, so it may be pickled and shared by worker processes. Masks stay run
lengths until their item is asked for.
Invariant: every box of an item has positive width and height and lies inside its image; every mask
has a pixel.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from fastdet.data.annotations import AnnotationNotes, Annotations
from fastdet.data.classes import Classes
from fastdet.data.coco_file import read_coco_file
from fastdet.data.floats import contiguous
from fastdet.data.images import MAX_PIXELS, Exif, read_pixels
from fastdet.data.segmentations import areas, decode

Target = dict[str, Any]


class DetectionDataset(Dataset[tuple[Any, Target]]):
    """The images and boxes of one split.

    An item is (image, target): image a uint8 `tv_tensors.Image` (3, H, W) RGB, target a dict with
    boxes (`tv_tensors.BoundingBoxes`, XYXY float32 (G, 4)), labels ((G,) int64, 1..C), image_id
    (int) and, where the annotations have masks, masks (`tv_tensors.Mask`, (G, H, W) uint8 of 0 and
    1); then `transforms(image, target)`, where given. Boxes that reach beyond the image are
    clipped. Crowd annotations are no training target: they are left out of the items, and the
    evaluation takes them from `annotations`. Pictures are turned as their EXIF orientation says;
    see `read_image`.

    Attributes:
        annotations: all of the split, also those that no item has.
        classes: names by label; label 0 is "background".
        category_ids: the source's ids; `category_ids[label - 1]` belongs to label.
        image_ids: the source's ids, by index.
        annotation_file: what the annotations were read from.
        images: the image folder.
    """

    def __init__(
        self,
        annotations: Annotations,
        transforms: Callable[[Any, Target], tuple[Any, Target]] | None = None,
        keep_empty: bool = True,
        *,
        exif: Exif = "apply",
        bit_depth: int | None = None,
        max_pixels: int = MAX_PIXELS,
        classes: Classes | None = None,
    ) -> None:
        """Chooses what can be learned; image files are opened item by item.

        Args:
            annotations: with an image folder. Those without a usable box (a width or height that is
                not positive; wholly outside the image) are left out, with one warning for each
                kind; those without a pixel in their mask too.
            transforms: called with an item's image and target; `train_transforms()`, for example.
            keep_empty: False leaves out the images that have no box to learn from.
            exif, bit_depth, max_pixels: see `read_image`.
            classes: whose labels the items have, matched by name; None: the source's own, in the
                order of their ids.

        Raises:
            ValueError: other classes than `classes`; annotations without an image folder.
        """
        if annotations.images is None:
            raise ValueError(f"{annotations.path}: expected annotations with an image folder")
        names = ["background", *annotations.names]
        classes = classes or Classes(names, annotations.path)
        new_labels = classes.labels_of(names, annotations.path)
        rows, boxes = _training_boxes(annotations)
        known = new_labels[annotations.labels[rows]] > 0
        rows, boxes = rows[known], boxes[known]
        index = annotations.image_index[rows]
        counts = np.bincount(index, minlength=len(annotations.image_ids))
        shown = np.arange(len(counts)) if keep_empty else np.flatnonzero(counts)
        order = np.argsort(index, kind="stable")
        rows = rows[order]
        # An image that is not shown has no boxes, so leaving it out does not move an offset.
        self._offsets = np.concatenate([[0], np.cumsum(counts[shown])])
        self._boxes = boxes[order]
        self._labels = new_labels[annotations.labels[rows]]
        masks = annotations.masks
        self._masks = None if masks is None else [masks[row] for row in rows]
        self._sizes = annotations.image_sizes[shown]
        self._file_names = [annotations.file_names[i] for i in shown]
        self.image_ids = [annotations.image_ids[i] for i in shown]
        ids = dict(zip(new_labels[1:].tolist(), annotations.category_ids, strict=True))
        self.category_ids = [ids[label] for label in range(1, len(classes.names))]
        self.classes = list(classes.names)
        self.annotations = annotations
        self.annotation_file = annotations.path
        self.images = annotations.images
        self.transforms = transforms
        self.exif: Exif = exif
        self.bit_depth = bit_depth
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        """How many boxes all items have together."""
        return len(self._boxes)

    def box_and_image_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) width and height of all boxes; (N, 2) height and width of the image of each."""
        sizes = np.repeat(self._sizes, np.diff(self._offsets), axis=0)
        return self._boxes[:, 2:] - self._boxes[:, :2], sizes

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        height, width = self._sizes[index].tolist()
        try:
            pixels = read_pixels(
                self.image_path(index),
                (height, width),
                exif=self.exif,
                bit_depth=self.bit_depth,
                max_pixels=self.max_pixels,
            )
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error} (image id {self.image_ids[index]})") from error
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
        target = self.target(index)
        if self.transforms is None:
            return tv_tensors.Image(contiguous(planes)), target
        return self.transforms(tv_tensors.Image(planes), target)

    def image_path(self, index: int) -> Path:
        """The path of an item's picture."""
        return self.images / self._file_names[index]

    def target(self, index: int) -> Target:
        """The target of an item before transforms; decodes no image."""
        index = range(len(self))[index]  # negative indices, and IndexError at the end
        rows = slice(self._offsets[index], self._offsets[index + 1])
        height, width = self._sizes[index].tolist()
        boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]: sees Tensor.__init__
            torch.from_numpy(self._boxes[rows].copy()),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        )
        labels = torch.from_numpy(self._labels[rows].copy())
        target: Target = {"boxes": boxes, "labels": labels, "image_id": self.image_ids[index]}
        if self._masks is not None:
            masks = torch.from_numpy(decode(self._masks[rows], height, width))
            target["masks"] = tv_tensors.Mask(masks)
        return target


class CocoDetection(DetectionDataset):
    """A COCO file and its image folder; see `DetectionDataset`."""

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transforms: Callable[[Any, Target], tuple[Any, Target]] | None = None,
        keep_empty: bool = True,
        masks: bool = False,
        *,
        exif: Exif = "apply",
        files_anywhere: bool = False,
        **options: Any,
    ) -> None:
        """Reads the annotation file.

        Args:
            images: the folder that the file names in the annotations start from.
            annotations: a COCO file; see `read_coco_file`.
            masks: read the segmentations: polygons, RLE and compressed RLE.
            files_anywhere: allow file names that lead out of the image folder.
            transforms, keep_empty, exif, options: see `DetectionDataset`.

        Raises:
            FileNotFoundError: no annotation file.
            ValueError: broken file; see `read_coco_file`. As `DetectionDataset`.
        """
        file = read_coco_file(
            annotations, masks, images=images, exif=exif, files_anywhere=files_anywhere
        )
        super().__init__(file, transforms, keep_empty, exif=exif, **options)


def _training_boxes(file: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the file that can be trained on, and their xyxy float32 boxes, clipped."""
    limits = file.image_sizes[file.image_index][:, [1, 0, 1, 0]]  # (A, 4) width, height, twice
    xyxy = np.concatenate(
        [file.boxes_xywh[:, :2], file.boxes_xywh[:, :2] + file.boxes_xywh[:, 2:]], axis=1
    )
    # Checked after the rounding to float32, so that a kept box is a box to the models too.
    clipped = xyxy.clip(0, limits).astype(np.float32)
    empty = (file.boxes_xywh[:, 2:] <= 0).any(1)
    outside = ~empty & (clipped[:, 2:] <= clipped[:, :2]).any(1)
    blank = np.zeros_like(empty) if file.masks is None else areas(file.masks) == 0
    notes = AnnotationNotes(file.path)
    kinds = {
        "skipped: width or height is not positive": empty,
        "skipped: bbox is outside the image": outside,
        "skipped: the mask has no pixel": blank & ~(empty | outside),
        "kept that repeat another: image, category and bbox are the same": _repeats(file)
        & ~(empty | outside | blank),
    }
    for kind, wrong in kinds.items():
        if wrong.any():
            notes.add(kind, file.where(int(np.argmax(wrong))), int(wrong.sum()))
    notes.warn()
    _warn_of_crowds_alone(file)
    usable = np.flatnonzero(~(empty | outside | blank | file.crowd))
    return usable, clipped[usable]


def _repeats(file: Annotations) -> np.ndarray:
    """(A,) bool: annotations that say what an earlier one says."""
    says = np.column_stack([file.image_index, file.labels, file.crowd, file.boxes_xywh])  # (A, 7)
    rows = np.ascontiguousarray(says).view(np.dtype((np.void, says.strides[0]))).ravel()
    repeats = np.ones(len(rows), bool)
    repeats[np.unique(rows, return_index=True)[1]] = False
    return repeats


def _warn_of_crowds_alone(file: Annotations) -> None:
    objects = np.bincount(file.labels[~file.crowd], minlength=len(file.names) + 1)
    crowds = np.bincount(file.labels[file.crowd], minlength=len(file.names) + 1)
    alone = [file.names[label - 1] for label in np.flatnonzero((objects == 0) & (crowds > 0))]
    if alone:
        warnings.warn(
            f"{file.path}: of {', '.join(alone)} there are crowds (iscrowd) alone, which are no "
            "training target",
            stacklevel=4,
        )
