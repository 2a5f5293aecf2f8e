# SPDX-License-Identifier: BSD-3-Clause
"""RoIAlign: bilinear pooling of boxes from one feature map, or from the levels of a pyramid."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import library
from .output_size import height_and_width

# Calls that torch.fx records as they are: it cannot follow the lists and types in their arguments.
for _function in ("roi_align", "multiscale_roi_align"):
    torch.fx.wrap(_function)


def _rois(boxes: Sequence[Tensor]) -> Tensor:
    """The boxes of each image, (L, 4), as rois (K, 5): batch index and xyxy."""
    if any(b.dim() != 2 or b.size(1) != 4 for b in boxes):
        raise ValueError(f"boxes: expected a list of (L, 4), got {[tuple(b.shape) for b in boxes]}")
    if not boxes:
        raise ValueError("boxes: expected a tensor for each image, got an empty list")
    # A half type cannot count far.
    dtype = torch.promote_types(boxes[0].dtype, torch.float32)
    return torch.cat([nn.functional.pad(b.to(dtype), (1, 0), value=i) for i, b in enumerate(boxes)])


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The average of bilinear samples in each bin of each box.

    Definition: `torchvision.ops.roi_align`. Samples beyond [-1, size] are 0. A box that is not
    finite or whose image does not exist pools to 0. Differentiable in `input`. Samples are
    placed in float64, so that the result is closer to the definition than torchvision's. Beyond the
    results it takes, on the CPU, 12 to 16 bytes for each row and column that a RoI's bins read, and
    on CUDA, in backward, 64 bytes a RoI.

    Args:
        input: (B, C, H, W), NCHW or channels_last; half types are summed in float32.
        boxes: (K, 5) batch index and xyxy in image pixels, or a list of (L, 4), one an image. May
            have another floating dtype than `input`.
        output_size: bins, (height, width) or one number for both.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples a bin in each direction; <= 0: one per feature pixel, at most 2**20.
        aligned: shifts the boxes by half a feature pixel, so that pixel centres lie at +0.5, and
            lets boxes be smaller than one feature pixel.

    Returns:
        (K, C, height, width) in the dtype and memory layout of `input`.

    Raises:
        ValueError: output_size below 1; a list of boxes of a wrong shape.
        RuntimeError: wrong shape, dtype or device.
    """
    height, width = height_and_width(output_size)
    rois = boxes if isinstance(boxes, Tensor) else _rois(boxes)
    return torch.ops.fastdet.roi_align(
        input, rois, spatial_scale, height, width, sampling_ratio, aligned
    )


class RoIAlign(nn.Module):
    """`roi_align` as a module; torchvision's signature."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """See `roi_align`."""
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor | None,
    output_size: int | Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int = 2,
    canonical_scale: int = 224,
    canonical_level: int = 4,
    aligned: bool = False,
) -> Tensor:
    """`roi_align` of each box from the level of a pyramid that fits its size, in one call.

    Definition: `torchvision.ops.MultiScaleRoIAlign`; the level is eq. 1 of "Feature Pyramid
    Networks" (https://arxiv.org/abs/1612.03144), decided by comparing areas and so the same on
    every device. Differentiable in `features`.

    Args:
        features: at most 8 levels of (B, C, H_l, W_l), the finest first; the first one's memory
            layout is that of the result.
        boxes: (B, K, 4) xyxy in image pixels.
        counts: (B,) int64; rows of an image from its count on are not read. None: all K count.
        output_size: bins, (height, width) or one number for both.
        scales: feature pixels per image pixel of each level, falling.
        sampling_ratio: as in `roi_align`.
        canonical_scale: the side in pixels of the box that belongs to `canonical_level`.
        canonical_level: minus log2 of the scale of that level.
        aligned: as in `roi_align`.

    Returns:
        (B, K, C, height, width); rows beyond the counts are 0.

    Raises:
        ValueError: output_size or canonical_scale below 1; scales that do not fall.
        RuntimeError: wrong shape, dtype or device.
    """
    height, width = height_and_width(output_size)
    if canonical_scale < 1:
        raise ValueError(f"canonical_scale: expected a number above 0, got {canonical_scale}")
    falling = [*scales, 0.0]
    if any(not a > b for a, b in itertools.pairwise(falling)):
        raise ValueError(f"scales: expected falling numbers above 0, got {list(scales)}")
    return torch.ops.fastdet.multiscale_roi_align(
        list(features),
        boxes,
        counts,
        height,
        width,
        list(scales),
        sampling_ratio,
        canonical_scale,
        canonical_level,
        aligned,
    )


class MultiScaleRoIAlign(nn.Module):
    """`multiscale_roi_align` on lists of boxes; torchvision's signature.

    Each level's scale is taken from its size: the power of two nearest to its share of the image.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ):
        super().__init__()
        self.featmap_names = featmap_names
        self.output_size = height_and_width(output_size)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

    def forward(
        self,
        x: Mapping[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """Pools each image's boxes.

        Args:
            x: feature maps by name, the finest first; names outside `featmap_names` are not read.
            boxes: (L, 4) xyxy in pixels, one tensor an image.
            image_shapes: (height, width) of each image, of which the largest made the features.

        Returns:
            (sum of L, C, height, width).
        """
        if not image_shapes:
            raise ValueError("image_shapes: expected one an image, got an empty list")
        features = [level for name, level in x.items() if name in self.featmap_names]
        # Under autocast, levels that come from different layers may differ in dtype.
        features = [level.to(features[0].dtype) for level in features]
        image_height = max(height for height, _ in image_shapes)
        scales = [2.0 ** round(math.log2(level.shape[2] / image_height)) for level in features]
        sizes = [len(b) for b in boxes]
        pooled = multiscale_roi_align(
            features,
            nn.utils.rnn.pad_sequence(boxes, batch_first=True),
            torch.tensor(sizes, device=boxes[0].device),
            self.output_size,
            scales,
            self.sampling_ratio,
            self.canonical_scale,
            self.canonical_level,
        )
        if min(sizes) == max(sizes):
            return pooled.flatten(0, 1)
        return torch.cat([rows[:n] for rows, n in zip(pooled, sizes, strict=True)])

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


# ---- shapes, layouts, gradients ------------------------------------------------------------------


def is_channels_last(features: Tensor) -> bool:
    """By strides alone, as csrc/tensors/feature_layout.h decides it too."""
    return features.stride(-3) == 1 and features.stride(-1) != 1


def empty_features(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    """Uninitialised (..., C, H, W) in either layout."""
    *batch, channels, height, width = sizes
    if not channels_last:
        return like.new_empty((*batch, channels, height, width))
    return like.new_empty((*batch, height, width, channels)).movedim(-1, -3)


@library.register_fake("fastdet::roi_align")
def _(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    sizes = (rois.size(0), input.size(1), pooled_height, pooled_width)
    return empty_features(input, sizes, is_channels_last(input))


@library.register_fake("fastdet::roi_align_backward")
def _(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    batch: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    return empty_features(grad, (batch, channels, height, width), channels_last)


@library.register_fake("fastdet::multiscale_roi_align")
def _(
    features: list[Tensor],
    boxes: Tensor,
    counts: Tensor | None,
    pooled_height: int,
    pooled_width: int,
    scales: list[float],
    sampling_ratio: int,
    canonical_scale: int,
    canonical_level: int,
    aligned: bool,
) -> Tensor:
    first = features[0]
    sizes = (boxes.size(0), boxes.size(1), first.size(1), pooled_height, pooled_width)
    return empty_features(first, sizes, is_channels_last(first))


@library.register_fake("fastdet::multiscale_roi_align_backward")
def _(
    grad: Tensor,
    boxes: Tensor,
    counts: Tensor | None,
    heights: list[int],
    widths: list[int],
    scales: list[float],
    sampling_ratio: int,
    canonical_scale: int,
    canonical_level: int,
    aligned: bool,
    channels_last: bool,
    deterministic: bool,
) -> list[Tensor]:
    return [
        empty_features(grad, (grad.size(0), grad.size(2), height, width), channels_last)
        for height, width in zip(heights, widths, strict=True)
    ]


def _roi_align_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, ctx.spatial_scale, _, _, ctx.sampling_ratio, ctx.aligned = inputs
    ctx.sizes, ctx.channels_last = input.shape, is_channels_last(input)
    ctx.save_for_backward(rois)


def _roi_align_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    grad_input = torch.ops.fastdet.roi_align_backward(
        grad,
        rois,
        ctx.spatial_scale,
        *ctx.sizes,
        ctx.sampling_ratio,
        ctx.aligned,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_input, None, None, None, None, None, None


def _multiscale_roi_align_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, counts, _, _, ctx.scales, *ctx.arguments = inputs
    ctx.heights = [level.size(2) for level in features]
    ctx.widths = [level.size(3) for level in features]
    ctx.channels_last = is_channels_last(features[0])
    ctx.save_for_backward(boxes, counts)


def _multiscale_roi_align_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    boxes, counts = ctx.saved_tensors
    grad_features = torch.ops.fastdet.multiscale_roi_align_backward(
        grad,
        boxes,
        counts,
        ctx.heights,
        ctx.widths,
        ctx.scales,
        *ctx.arguments,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_features, None, None, None, None, None, None, None, None, None


torch.library.register_autograd(
    "fastdet::roi_align", _roi_align_backward, setup_context=_roi_align_setup
)
torch.library.register_autograd(
    "fastdet::multiscale_roi_align",
    _multiscale_roi_align_backward,
    setup_context=_multiscale_roi_align_setup,
)
