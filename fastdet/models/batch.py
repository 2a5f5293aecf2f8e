# SPDX-License-Identifier: BSD-3-Clause
"""The border of the detectors: lists of images and dicts outside, padded tensors inside.

`pad` and `restore` are the only places that loop over images. Between them every shape depends on
the bucket (B, H, W, G) alone, and rows beyond a count hold anything finite.
Cost: one pass over the pixels to resize and one to copy them into the padded batch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastdet.engine.tracing import is_eager

# ImageNet's, on which the backbones were trained.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class Batch(NamedTuple):
    """Padded images and their ground truth, all of fixed shape.

    Attributes:
        images: (B, C, H, W) channels_last, normalised, zero right of and below each image.
        sizes: (B, 2) int64, height and width of each image before padding.
        gt_boxes: (B, G, 4) xyxy in pixels of `images`, float32, or float64 as these.
        gt_labels: (B, G) int64, 1 .. num_classes - 1.
        gt_counts: (B,) int64, the rows of gt_boxes, gt_labels and gt_masks that are real.
        gt_masks: (B, G, H, W) bool, where the model learns from masks: a byte a pixel, so that 16
            rows for two images of 800 x 1344 take 34 MB.
    """

    images: Tensor
    sizes: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_counts: Tensor
    gt_masks: Tensor | None = None


class Detections(NamedTuple):
    """Detections of a batch, highest score first, zero beyond `counts`.

    Attributes:
        boxes: (B, D, 4) xyxy in pixels.
        scores: (B, D) in [0, 1].
        labels: (B, D) int64.
        counts: (B,) int64.
        masks: (B, D, M, M) in [0, 1], where the model finds masks: the probability that a part of
            the box belongs to the object.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    masks: Tensor | None = None

    def to_list(self) -> list[dict[str, Tensor]]:
        """One dict of boxes (K, 4), labels (K,), scores (K,) and masks (K, M, M) for each image."""
        rows = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        if self.masks is not None:
            rows["masks"] = self.masks
        return [
            {name: values[i, :count] for name, values in rows.items()}
            for i, count in enumerate(self.counts.tolist())
        ]


def batch_shape(batch: Batch) -> tuple[int, int, int, int]:
    """(B, H, W, G): all that the shapes in a core depend on, and what it is compiled for."""
    images, _, height, width = batch.images.shape
    return images, height, width, batch.gt_boxes.shape[1]


def rows_in_use(counts: Tensor, rows: int) -> int:
    """How many of the padded rows a head has to compute: at least 1, at most `rows`.

    Reading the largest count is free in eager mode on the CPU only. Everywhere else the shape must
    stay fixed: a GPU would wait, and a trace would specialise on it.
    """
    if is_eager(counts) and counts.device.type == "cpu":
        return min(rows, max(1, int(counts.max())))
    return rows


def pad(
    images: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]] | None,
    *,
    num_classes: int,
    min_size: int | Sequence[int],
    max_size: int,
    size_divisor: int = 32,
    fixed_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    masks: bool = False,
) -> Batch:
    """Resizes, normalises and pads images and targets into one batch.

    Args:
        images: B tensors (C, h, w), floating point in [0, 1], RGB; of one channel, grey: it stands
            for all of them.
        targets: B dicts of boxes (g, 4) xyxy in pixels of the image as given and labels (g,) int64,
            or None: no ground truth. With `masks`, also masks (g, h, w), bool or uint8 of 0 and 1.
        num_classes: labels are 1 .. num_classes - 1.
        min_size: length of the shorter side after resizing; of several, each image draws one.
        max_size: the shorter side is shorter where the longer one would exceed this.
        size_divisor: H and W are rounded up to a multiple of it. The larger it is, the fewer shapes
            there are for a compiled model, and the more pixels that are padding. It changes what is
            seen near an image's right and lower edges, and everything a GroupNorm makes of it.
        fixed_size: height and width of every image after resizing, instead of min and max_size.
        image_mean, image_std: of the pixels, one for each of the C channels.
        masks: whether the model learns from masks; without, those of the targets are not read.

    Returns:
        A Batch on the images' device; G is the power of two >= 8 that holds the largest count.

    Raises:
        TypeError, ValueError: naming the index of the image and what was expected.

    The arithmetic is that of torchvision's GeneralizedRCNNTransform.
    """
    check_images(images, len(image_mean))
    if targets is not None:
        check_targets(targets, images, num_classes, masks)
    resized = [
        _resize(_normalise(image, image_mean, image_std), min_size, max_size, fixed_size)
        for image in images
    ]
    height = _round_up(max(image.shape[1] for image in resized), size_divisor)
    width = _round_up(max(image.shape[2] for image in resized), size_divisor)
    padded = torch.empty(
        (len(images), len(resized[0]), height, width),
        dtype=resized[0].dtype,
        device=resized[0].device,
        memory_format=torch.channels_last,
    ).zero_()
    for row, image in zip(padded, resized, strict=True):
        row[:, : image.shape[1], : image.shape[2]].copy_(image)
    sizes = image_sizes(resized)
    dtype = torch.promote_types(padded.dtype, torch.float32)
    boxes, labels, counts = _pad_targets(targets, sizes, image_sizes(images), dtype)
    gt_masks = None
    if targets is not None and masks:
        gt_masks = _pad_masks(targets, resized, (boxes.shape[1], height, width))
    return Batch(padded, sizes, boxes, labels, counts, gt_masks)


def restore(detections: Detections, sizes: Tensor, original_sizes: Tensor) -> Detections:
    """Detections in the pixels of the images as they were given to `pad`.

    Args:
        detections: in the padded batch's pixels.
        sizes: (B, 2) int64, height and width after resizing (Batch.sizes).
        original_sizes: (B, 2) int64, height and width before it.

    Follows torchvision's resize_boxes.
    """
    ratios = _xyxy_ratios(sizes, original_sizes)[:, None]  # (B, 1, 4)
    return detections._replace(boxes=detections.boxes * ratios)


def image_sizes(images: Sequence[Tensor]) -> Tensor:
    """(B, 2) int64: height and width of each image (C, h, w), on the images' device."""
    sizes = [tuple(image.shape[-2:]) for image in images]
    return torch.tensor(sizes, dtype=torch.int64, device=images[0].device)


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


def check_targets(
    targets: Sequence[dict[str, Tensor]], images: Sequence[Tensor], num_classes: int, masks: bool
) -> None:
    """Raises TypeError or ValueError unless the targets can be learned from."""
    if len(targets) != len(images):
        raise ValueError(
            f"targets: expected one for each of {len(images)} images, got {len(targets)}"
        )
    keys = ["boxes", "labels"] + ["masks"] * masks
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        missing = set(keys) - set(target)
        if missing:
            raise ValueError(f"target of image {i}: expected keys {keys}, no {missing}")
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
        largest = _plain(masks).flatten(1).amax(dim=1)
        mask = int(largest.argmax())
        raise ValueError(
            f"mask {mask} of image {i}: expected 0 and 1, got {int(largest[mask])}; an image of "
            "instance numbers must become one mask for each"
        )


def _check_values(targets: Sequence[dict[str, Tensor]], num_classes: int) -> None:
    """The checks that read tensors: once for the batch; the culprit is sought on failure."""
    boxes = torch.cat([_plain(target["boxes"]) for target in targets])  # (sum of G, 4)
    labels = torch.cat([_plain(target["labels"]) for target in targets])
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


def _normalise(image: Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> Tensor:
    """(1 or C, h, w) -> (C, h, w)."""
    image = _plain(image)
    mean = torch.tensor(image_mean, dtype=image.dtype, device=image.device)[:, None, None]
    std = torch.tensor(image_std, dtype=image.dtype, device=image.device)[:, None, None]
    return (image - mean) / std


def _resize(
    image: Tensor,
    min_size: int | Sequence[int],
    max_size: int,
    fixed_size: tuple[int, int] | None,
) -> Tensor:
    if fixed_size is not None:
        return F.interpolate(image[None], fixed_size, mode="bilinear", align_corners=False)[0]
    height, width = image.shape[-2:]
    if not isinstance(min_size, int):
        # torchvision's draw, so that the same seed gives the same sizes.
        min_size = min_size[int(torch.empty(1).uniform_(0, len(min_size)))]
    scale = min(min_size / min(height, width), max_size / max(height, width))
    if scale == 1:
        return image
    # By scale_factor and not by size, because the rounding of the size is then torchvision's.
    return F.interpolate(
        image[None],
        scale_factor=scale,
        mode="bilinear",
        recompute_scale_factor=True,
        align_corners=False,
    )[0]


def _pad_targets(
    targets: Sequence[dict[str, Tensor]] | None,
    sizes: Tensor,
    original_sizes: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ground truth as (B, G, 4), (B, G) and (B,), in the pixels of the resized images."""
    device, batch = sizes.device, len(sizes)
    counts = [len(target["boxes"]) for target in targets] if targets else [0] * batch
    rows = max(8, 1 << (max(counts) - 1).bit_length())
    boxes = torch.zeros((batch, rows, 4), dtype=dtype, device=device)
    labels = torch.zeros((batch, rows), dtype=torch.int64, device=device)
    if targets:
        own_boxes = pad_sequence([_plain(t["boxes"]) for t in targets], batch_first=True)
        own_labels = pad_sequence([_plain(t["labels"]) for t in targets], batch_first=True)
        boxes[:, : own_boxes.shape[1]] = own_boxes.to(device, dtype)
        labels[:, : own_labels.shape[1]] = own_labels.to(device)
    boxes *= _xyxy_ratios(original_sizes, sizes)[:, None]
    return boxes, labels, torch.tensor(counts, dtype=torch.int64, device=device)


def _pad_masks(
    targets: Sequence[dict[str, Tensor]], images: Sequence[Tensor], shape: tuple[int, int, int]
) -> Tensor:
    """Masks of the resized images (C, h, w) as (B, *shape) bool: the nearest pixel of the old ones.

    One byte a pixel of each of G rows, of which most may be padding.
    """
    device = images[0].device
    padded = torch.zeros((len(targets), *shape), dtype=torch.bool, device=device)
    for rows, target, image in zip(padded, targets, images, strict=True):
        masks, size = _plain(target["masks"]).to(device), image.shape[1:]
        if masks.shape[1:] != size:
            masks = F.interpolate(masks[:, None].view(torch.uint8), size)[:, 0]
        rows[: len(masks), : size[0], : size[1]] = masks
    return padded


def _xyxy_ratios(old: Tensor, new: Tensor) -> Tensor:
    """(B, 4) float32 factors that carry xyxy boxes from images of size `old` to size `new`."""
    return (new.float() / old.float())[:, [1, 0, 1, 0]]


def _plain(tensor: Tensor) -> Tensor:
    """Without torchvision's tv_tensors wrapping, whose subclass would follow into the core."""
    return tensor.as_subclass(Tensor)


def _round_up(length: int, divisor: int) -> int:
    return math.ceil(length / divisor) * divisor
