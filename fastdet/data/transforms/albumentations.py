# SPDX-License-Identifier: BSD-3-Clause
"""A pipeline of albumentations as a transform of (image, target).

Two things differ from a plain call. Albumentations drops boxes and leaves their masks; here each
box carries the number of its object, and what is left of the objects follows it. And its random
numbers are its own; here each call takes its seed from torch, and all steps draw from one generator
(`Compose.set_random_seed` gives every step the same numbers: two flips would always agree).
Cost: that of the pipeline, and a copy of the image each way.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from fastdet.data.transforms.visible import clamp_and_sanitize, drop_hidden

NO_BOXES = "expected an albumentations Compose with bbox_params=A.BboxParams(format='pascal_voc')"


class _Albumentations:
    """See `from_albumentations`."""

    def __init__(self, compose: Any) -> None:
        self.compose = compose
        self.label_fields = list(compose.processors["bboxes"].params.label_fields or [])

    def __call__(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """One item, augmented."""
        seed = int(torch.randint(2**62, ()))
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        objects = len(target["boxes"])
        boxes = np.zeros((objects, 5), np.float32)  # the last column is the object's number
        boxes[:, :4] = _plain(target["boxes"]).numpy()
        boxes[:, 4] = np.arange(objects)
        given: dict[str, Any] = {
            "image": np.ascontiguousarray(_plain(image).permute(1, 2, 0).numpy()),
            "bboxes": boxes,
            **{field: target["labels"].numpy() for field in self.label_fields},
        }
        if "masks" in target and objects:
            given["masks"] = list(_plain(target["masks"]).numpy())
        found = self.compose(**given)
        return self._item(found, target)

    def _item(self, found: dict[str, Any], target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What the pipeline gave, as tv_tensors."""
        image = _image(found["image"])
        height, width = image.shape[-2:]
        rows = np.asarray(found["bboxes"], np.float64).reshape(-1, 5)
        kept = torch.from_numpy(rows[:, 4].round().astype(np.int64))
        boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]: sees Tensor.__init__
            torch.from_numpy(rows[:, :4].astype(np.float32)),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        )
        result = {**target, "boxes": boxes, "labels": target["labels"][kept]}
        if "masks" in target:
            masks = torch.zeros((0, height, width), dtype=target["masks"].dtype)
            if "masks" in found:
                masks = torch.stack([torch.as_tensor(mask) for mask in found["masks"]])
            result["masks"] = tv_tensors.Mask(masks[kept])
        return drop_hidden(*clamp_and_sanitize(image, result))


def from_albumentations(compose: Any) -> _Albumentations:
    """A pipeline of albumentations as a transform, for a data set or `train(transforms=)`.

    Args:
        compose: an `A.Compose` with `bbox_params=A.BboxParams(format="pascal_voc")`; label_fields
            may be given, and get the labels. Its seed is not used.

    Returns:
        A transform of (image, target): image float32 in 0..1; boxes inside it, at least 1 px wide
        and high; labels and masks in step. Random numbers follow torch's.

    Raises:
        ValueError: another object, or boxes in another format.
    """
    processor = getattr(compose, "processors", {}).get("bboxes")
    if processor is None:
        raise ValueError(f"{NO_BOXES}, got {type(compose).__name__} without bbox_params")
    if processor.params.format != "pascal_voc":
        raise ValueError(f"{NO_BOXES}, got format {processor.params.format!r}")
    return _Albumentations(compose)


def _image(image: Any) -> Tensor:
    """(H, W, 3) array, or (3, H, W) tensor from ToTensorV2 -> float32 image in 0..1."""
    if not isinstance(image, Tensor):
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return functional.to_dtype(tv_tensors.Image(image), torch.float32, scale=True)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)
