# SPDX-License-Identifier: BSD-3-Clause
"""The border of a detector: converts a list of images and targets to one padded batch.

Cost: one pass over the pixels to normalise them, one to resize them and one to copy them into the
batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastdet.memory import cached_blocks, mapped_empty
from fastdet.models.batch import Batch, xyxy_ratios
from fastdet.models.checks import check_images, check_range, check_targets, plain

# Mean and standard deviation of ImageNet, on which the backbones were trained.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Border:
    """How a detector resizes, normalises and pads images.

    Attributes:
        min_size: length of the shorter side after resizing, in pixels. Of several values, training
            uses a random one for each image, and eval mode uses the last one.
        max_size: maximum length of the longer side. If the longer side would exceed it, the image
            is resized to a smaller size.
        size_divisor: H and W of a batch are rounded up to a multiple of this. A larger divisor
            gives fewer shapes for a compiled model, but more padding. Padding also changes the
            features near an image's right and lower edges, and all results of a GroupNorm.
        fixed_size: height and width of every image after resizing. If given, min_size and max_size
            are not used.
        image_mean: mean of the pixels, one number for each of the C channels.
        image_std: standard deviation of the pixels, one number for each channel.
        antialias: resize as Pillow and transformers do: a smaller image is a mean of all pixels,
            and the longer side is rounded in their way. False: as torchvision's detectors do.

    Raises:
        ValueError: a size or divisor below 1; image_mean and image_std of different lengths.
    """

    min_size: int | Sequence[int] = 800
    max_size: int = 1333
    size_divisor: int = 32
    fixed_size: tuple[int, int] | None = None
    image_mean: Sequence[float] = IMAGE_MEAN
    image_std: Sequence[float] = IMAGE_STD
    antialias: bool = False

    def __post_init__(self) -> None:
        for name, sizes in (
            ("min_size", [self.min_size] if isinstance(self.min_size, int) else self.min_size),
            ("max_size", [self.max_size]),
            ("size_divisor", [self.size_divisor]),
            ("fixed_size", self.fixed_size or [1]),
        ):
            if not sizes or min(sizes) < 1:
                got = getattr(self, name)
                raise ValueError(f"{name}: expected a number above 0, got {got}")
        if len(self.image_mean) != len(self.image_std):
            raise ValueError(
                "image_std: expected one number for each channel of image_mean, "
                f"{len(self.image_mean)}, got {len(self.image_std)}"
            )

    def pad(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        *,
        num_classes: int,
        masks: bool = False,
        training: bool = False,
    ) -> Batch:
        """Resizes, normalises and pads images and targets into one batch.

        Args:
            images: B tensors (C, h, w), floating point in [0, 1], RGB; or grey images (1, h, w),
                whose channel is repeated C times.
            targets: B dicts of boxes (g, 4) xyxy in pixels of the original image, labels (g,) int64
                and, if `masks`, masks (g, h, w), bool, or uint8 with values 0 and 1. None: no
                ground truth.
            num_classes: labels are 1 .. num_classes - 1.
            masks: whether the batch has the masks of the targets.
            training: whether each image gets a random one of the values of min_size.

        Returns:
            A Batch on the device of the images. G is the largest number of boxes of an image,
            rounded up to a power of two, at least 8.

        Raises:
            TypeError: wrong type; the message names the image and what was expected.
            ValueError: wrong shape or value; the message names the image and what was expected.

        The arithmetic is that of torchvision's GeneralizedRCNNTransform.
        """
        check_images(images, len(self.image_mean))
        check_range(images, self.image_mean, self.image_std)
        if targets is not None:
            check_targets(targets, images, num_classes, masks)
        with cached_blocks(images[0].device):
            return self._padded(images, targets, masks, training)

    def _padded(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None,
        masks: bool,
        training: bool,
    ) -> Batch:
        resized = [self._resize(self._normalise(image), training) for image in images]
        padded = _pad_images(resized, self.size_divisor)
        sizes, original_sizes = image_sizes(resized), image_sizes(images)
        dtype = torch.promote_types(padded.dtype, torch.float32)
        boxes, labels, counts = _pad_targets(targets, sizes, original_sizes, dtype)
        gt_masks = None
        if targets is not None and masks:
            gt_masks = _pad_masks(targets, resized, boxes.shape[1], padded.shape)
        return Batch(padded, sizes, boxes, labels, counts, gt_masks, original_sizes)

    def _normalise(self, image: Tensor) -> Tensor:
        """Normalises (1 or C, h, w) -> (C, h, w)."""
        image = plain(image)
        mean = torch.tensor(self.image_mean, dtype=image.dtype, device=image.device)[:, None, None]
        std = torch.tensor(self.image_std, dtype=image.dtype, device=image.device)[:, None, None]
        return (image - mean) / std

    def _resize(self, image: Tensor, training: bool) -> Tensor:
        if self.fixed_size is not None:
            return _to_size(image, self.fixed_size, self.antialias)
        height, width = image.shape[-2:]
        min_size = self.min_size
        if not isinstance(min_size, int):
            # The same random draw as in torchvision, so that a seed gives the same sizes.
            draw = int(torch.empty(1).uniform_(0, len(min_size))) if training else -1
            min_size = min_size[draw]
        if self.antialias:
            return _to_size(image, _pillow_size(height, width, min_size, self.max_size), True)
        scale = self._scale(height, width, min_size)
        if scale == 1:
            return image
        if min(height, width) * scale < 1:  # very slim: torchvision's rounding leaves no pixel
            size = [max(1, int(side * scale)) for side in (height, width)]
            return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        # scale_factor instead of size, so that the size is rounded as in torchvision.
        return F.interpolate(
            image[None],
            scale_factor=scale,
            mode="bilinear",
            recompute_scale_factor=True,
            align_corners=False,
        )[0]

    def scale_of(self, height: int, width: int) -> float:
        """Pixels after resizing per pixel of an image, in eval mode.

        With fixed_size, that of the side that shrinks more.
        """
        if self.fixed_size is not None:
            return min(self.fixed_size[0] / height, self.fixed_size[1] / width)
        min_size = self.min_size if isinstance(self.min_size, int) else self.min_size[-1]
        return self._scale(height, width, min_size)

    def _scale(self, height: int, width: int, min_size: int) -> float:
        return min(min_size / min(height, width), self.max_size / max(height, width))


def _to_size(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """The image (C, h, w) with another height and width."""
    if antialias and tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(
        image[None], size, mode="bilinear", align_corners=False, antialias=antialias
    )[0]


def _pillow_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The height and width of a resized image, as in transformers' get_size_with_aspect_ratio."""
    short, long = min(height, width), max(height, width)
    exact: float = min_size
    if long / short * min_size > max_size:
        exact = max_size * short / long
    side = round(exact)
    if side == short:
        return height, width
    other = int(exact * long / short)
    return (side, other) if height <= width else (other, side)


def image_sizes(images: Sequence[Tensor]) -> Tensor:
    """(B, 2) int64: height and width of each image (C, h, w), on the images' device."""
    sizes = [tuple(image.shape[-2:]) for image in images]
    return torch.tensor(sizes, dtype=torch.int64, device=images[0].device)


def _pad_images(images: Sequence[Tensor], size_divisor: int) -> Tensor:
    """Images (C, h, w) -> (B, C, H, W) channels_last, padded with zeros."""
    height, width = (
        math.ceil(max(image.shape[side] for image in images) / size_divisor) * size_divisor
        for side in (1, 2)
    )
    padded = torch.empty(
        (len(images), len(images[0]), height, width),
        dtype=images[0].dtype,
        device=images[0].device,
        memory_format=torch.channels_last,
    ).zero_()
    for i, image in enumerate(images):
        padded[i, :, : image.shape[1], : image.shape[2]] = image
    return padded


def _pad_targets(
    targets: Sequence[dict[str, Tensor]] | None,
    sizes: Tensor,
    original_sizes: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, G, 4), labels (B, G) and counts (B,), in pixels of the resized images."""
    device, batch = sizes.device, len(sizes)
    counts = [len(target["boxes"]) for target in targets] if targets else [0] * batch
    rows = max(8, 1 << (max(counts) - 1).bit_length())
    boxes = torch.zeros((batch, rows, 4), dtype=dtype, device=device)
    labels = torch.zeros((batch, rows), dtype=torch.int64, device=device)
    if targets:
        own_boxes = pad_sequence([plain(t["boxes"]) for t in targets], batch_first=True)
        own_labels = pad_sequence([plain(t["labels"]) for t in targets], batch_first=True)
        boxes[:, : own_boxes.shape[1]] = own_boxes.to(device, dtype)
        labels[:, : own_labels.shape[1]] = own_labels.to(device)
    boxes *= xyxy_ratios(original_sizes, sizes)[:, None]
    return boxes, labels, torch.tensor(counts, dtype=torch.int64, device=device)


def _pad_masks(
    targets: Sequence[dict[str, Tensor]], images: Sequence[Tensor], rows: int, shape: torch.Size
) -> Tensor:
    """Masks (B, rows, H, W) bool for the padded images of `shape` (B, C, H, W).

    Each mask is resized to the size of its image (C, h, w), nearest-neighbour. On the CPU rows that
    no mask is written to take no memory: the system gives a page when it is first written.
    """
    device = images[0].device
    size = len(targets), rows, *shape[2:]
    if device.type == "cpu":
        padded = mapped_empty(size, torch.bool)
    else:
        padded = torch.zeros(size, dtype=torch.bool, device=device)
    for own, target, image in zip(padded, targets, images, strict=True):
        masks, size = plain(target["masks"]).to(device), image.shape[1:]
        if masks.shape[1:] != size:
            masks = F.interpolate(masks[:, None].view(torch.uint8), size)[:, 0]
        own[: len(masks), : size[0], : size[1]] = masks
    return padded
