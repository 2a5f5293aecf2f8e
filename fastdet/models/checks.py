# SPDX-License-Identifier: BSD-3-Clause
"""Checks of images, targets and the number of classes, with a clear error for wrong ones.

An error names the image, what was expected and what was given.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_num_classes(num_classes: int) -> None:
    """Raises ValueError unless there is at least one class besides background."""
    if num_classes < 2:
        raise ValueError(
            f"num_classes: expected at least 2, background and one class, got {num_classes}"
        )


def check_counts(**counts: int) -> None:
    """Raises ValueError, with its name, for a number that is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: expected a number from 1 on, got {count}")


def plain(tensor: Tensor) -> Tensor:
    """The tensor as a plain Tensor. Results would inherit the class of torchvision's tv_tensors."""
    return tensor.as_subclass(Tensor)


def check_images(images: Sequence[Tensor], channels: int = 3) -> None:
    """Raises TypeError or ValueError unless each is a float tensor (channels or 1, h, w)."""
    shape = f"({channels}, H, W)"
    if isinstance(images, Tensor) or not isinstance(images, Sequence):
        raise TypeError(f"images: expected a list of tensors {shape}, got {type(images).__name__}")
    if not images:
        raise ValueError("images: expected at least one image, got an empty list")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise TypeError(f"image {i}: expected a tensor {shape}, got {type(image).__name__}")
        if image.dim() != 3 or image.shape[0] not in (1, channels) or 0 in image.shape:
            raise ValueError(
                f"image {i}: expected shape {shape}, or (1, H, W) for grey, got "
                f"{tuple(image.shape)}"
            )
        if not image.is_floating_point():
            raise TypeError(f"image {i}: expected a float tensor in [0, 1], got {image.dtype}")


def check_range(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises ValueError if an image is clearly brighter than 1, as one in 0 .. 255 is.

    Bicubic resizing overshoots white by less than 0.5, which is allowed.

    Args:
        images: which `check_images` has seen.
        mean, std: of the normalisation. Values that are not those of images in [0, 1] are the
            caller's own scale: there any image is right.
    """
    if not all(0 < m < 1 and s < 1 for m, s in zip(mean, std, strict=True)):
        return
    largest = torch.stack([plain(image).detach().amax().float() for image in images])  # (B,)
    if not bool((largest > 1.5).any()):  # the one wait for the device
        return
    i = int((largest > 1.5).nonzero()[0])
    raise ValueError(
        f"image {i}: expected values in [0, 1], got one of {float(largest[i]):.4g}; an image in "
        "0 .. 255 must be divided by 255"
    )


def check_targets(
    targets: Sequence[dict[str, Tensor]], images: Sequence[Tensor], num_classes: int, masks: bool
) -> None:
    """Raises TypeError or ValueError unless the targets can be used in training."""
    if len(targets) != len(images):
        raise ValueError(
            f"targets: expected one for each of {len(images)} images, got {len(targets)}"
        )
    keys = ["boxes", "labels"] + ["masks"] * masks
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        missing = set(keys) - set(target)
        if missing:
            raise ValueError(f"target of image {i}: expected keys {keys}, missing {missing}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes of image {i}: expected shape (G, 4), got {tuple(boxes.shape)}")
        if not boxes.is_floating_point():
            raise TypeError(f"boxes of image {i}: expected a float tensor, got {boxes.dtype}")
        if labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"labels of image {i}: expected shape ({len(boxes)},), got {tuple(labels.shape)}"
            )
        if labels.dtype != torch.int64:
            raise TypeError(f"labels of image {i}: expected int64, got {labels.dtype}")
        if masks:
            _check_masks(i, target["masks"], (len(boxes), *image.shape[-2:]))
    _check_values(targets, num_classes)


def _check_masks(i: int, masks: Tensor, shape: tuple[int, ...]) -> None:
    if masks.shape != shape:
        raise ValueError(f"masks of image {i}: expected shape {shape}, got {tuple(masks.shape)}")
    if masks.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"masks of image {i}: expected bool or uint8, got {masks.dtype}")
    if masks.dtype == torch.uint8 and masks.numel() and int(masks.max()) > 1:
        largest = plain(masks).flatten(1).amax(dim=1)
        mask = int(largest.argmax())
        raise ValueError(
            f"mask {mask} of image {i}: expected 0 and 1, got {int(largest[mask])}; convert an "
            "image of instance numbers to one mask for each instance"
        )


def _check_values(targets: Sequence[dict[str, Tensor]], num_classes: int) -> None:
    """The checks that read values: one test for the whole batch; on failure, find the bad row."""
    boxes = torch.cat([plain(target["boxes"]) for target in targets])  # (sum of G, 4)
    labels = torch.cat([plain(target["labels"]) for target in targets])
    image_of = torch.repeat_interleave(torch.tensor([len(target["boxes"]) for target in targets]))
    good_boxes = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
    good_labels = (labels >= 1) & (labels < num_classes)
    if bool((good_boxes & good_labels).all()):
        return
    bad = int((good_boxes & good_labels).logical_not().nonzero()[0])
    i = int(image_of[bad])
    if not bool(good_boxes[bad]):
        raise ValueError(
            f"boxes of image {i}: expected finite xyxy with x2 > x1 and y2 > y1, got "
            f"{boxes[bad].tolist()}; a box given as (x, y, width, height) must be converted first"
        )
    raise ValueError(
        f"labels of image {i}: expected 1 .. {num_classes - 1} (0 is background), "
        f"got {int(labels[bad])}"
    )
