# SPDX-License-Identifier: BSD-3-Clause
"""What the mixtures share: items are made alike, resized, placed in a frame, and joined.

Geometry is torchvision.transforms.v2's, so that boxes and masks follow the pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from fastdet.data.mixing.mixed import Item
from fastdet.data.transforms.canvas import canvas
from fastdet.data.transforms.resize import resize
from fastdet.data.transforms.visible import (
    OF_OBJECTS,
    chosen,
    clamp_and_sanitize,
    drop_hidden,
    wrapped_like,
)

MIN_VISIBLE = 0.1  # an object of which less is left is no target

_XYXY = tv_tensors.BoundingBoxFormat.XYXY


def as_item(item: Item) -> Item:
    """The item with tv_tensors, whatever the data set gave.

    Raises:
        ValueError: a target with something else than boxes, labels, masks and image_id, which could
            not be kept in step.
    """
    image, target = item
    if others := set(target) - {*OF_OBJECTS, "image_id"}:
        raise ValueError(
            "target: expected boxes, labels, masks and image_id to mix items, got also "
            f"{', '.join(sorted(others))}"
        )
    boxes = target["boxes"]
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        boxes = functional.convert_bounding_box_format(boxes, new_format=_XYXY)
    boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]: sees Tensor.__init__
        boxes.as_subclass(Tensor),
        format=_XYXY,
        canvas_size=tuple(image.shape[-2:]),
    )
    target = {**target, "boxes": boxes}
    if "masks" in target:
        target["masks"] = tv_tensors.Mask(target["masks"])
    return tv_tensors.Image(image), target


def fitted(item: Item, height: int, width: int, factor: float = 1.0) -> Item:
    """The item resized, its aspect kept: at factor 1 as large as fits into height x width."""
    image, target = item
    old_height, old_width = image.shape[-2:]
    ratio = min(height / old_height, width / old_width) * factor
    size = [max(1, round(old_height * ratio)), max(1, round(old_width * ratio))]
    if size == [old_height, old_width]:
        return item
    return resize(image, size), _each(target, resize, size)


def laid_into(item: Item, image: Tensor) -> Item:
    """The item resized to fit into the frame of `image`, at a random place of a grey canvas."""
    frame = image.shape[-2], image.shape[-1]
    other, target = fitted(as_item(item), *frame)
    height, width = other.shape[-2:]
    y, x = (int(torch.randint(free + 1, ())) for free in (frame[0] - height, frame[1] - width))
    background = canvas(image, *frame)
    background[:, y : y + height, x : x + width] = other
    return background, placed(target, (0, 0, height, width), frame, (y, x))


def placed(
    target: dict[str, Any],
    window: tuple[int, int, int, int],
    frame: tuple[int, int],
    place: tuple[int, int],
) -> dict[str, Any]:
    """The target of a window of an image that is laid into a larger frame.

    Args:
        target: of the whole image.
        window: top, left, height, width of the part that is laid; boxes are cut at it.
        frame: height and width.
        place: y and x of the window's corner in the frame.

    Returns:
        The objects of which enough is visible, in pixels of the frame.
    """
    whole = _areas(target["boxes"])
    _, _, height, width = window
    y, x = place
    cut = _each(target, functional.crop, *window)
    keep = _areas(cut["boxes"]) >= MIN_VISIBLE * whole
    padding = [x, y, frame[1] - x - width, frame[0] - y - height]
    moved = _each(chosen(cut, keep), functional.pad, padding)
    return drop_hidden(*clamp_and_sanitize(None, moved))[1]


def joined(first: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """One target with the objects of all, in order; the first gives the rest."""
    rows = {
        name: wrapped_like(first[name], torch.cat([target[name] for target in (first, *others)]))
        for name in OF_OBJECTS
        if name in first
    }
    return {**first, **rows}


def extents(masks: Tensor) -> Tensor:
    """(G, 4) float32: the smallest xyxy box around the pixels of each mask (G, H, W).

    The right and lower sides are those of the last pixel: a mask of one pixel has a box of 1 x 1.
    """
    columns, rows = masks.any(1).byte(), masks.any(2).byte()  # (G, W), (G, H)
    first = [line.argmax(1) for line in (columns, rows)]
    end = [line.shape[1] - line.flip(1).argmax(1) for line in (columns, rows)]
    return torch.stack([*first, *end], 1).float()


def _each(target: dict[str, Any], change: Any, *arguments: Any) -> dict[str, Any]:
    """The target with its boxes and masks changed."""
    rows = {name: change(target[name], *arguments) for name in ("boxes", "masks") if name in target}
    return {**target, **rows}


def _areas(boxes: Tensor) -> Tensor:
    boxes = boxes.as_subclass(Tensor)
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
