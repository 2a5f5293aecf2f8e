# SPDX-License-Identifier: BSD-3-Clause
"""RoIAlign: pools the features of boxes bilinearly, from one map or from a feature pyramid."""

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
    """Converts the boxes (L, 4) of each image to rois (K, 5): batch index and xyxy."""
    if any(b.dim() != 2 or b.size(1) != 4 for b in boxes):
        raise ValueError(f"boxes: expected a list of (L, 4), got {[tuple(b.shape) for b in boxes]}")
    if not boxes:
        raise ValueError("boxes: expected a tensor for each image, got an empty list")
    # A half type cannot hold large batch indices exactly.
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

    Definition: `torchvision.ops.roi_align`. Samples outside [-1, size] are 0. The result is 0 for a
    box that is not finite or whose batch index is out of range. Differentiable in `input`. Sample
    positions are computed in float64, which is closer to the definition than torchvision. Memory
    beyond the results: on the CPU 12 to 16 bytes for each row and column that the bins of a RoI
    read; on CUDA 64 bytes for each RoI, in backward only.

    Args:
        input: (B, C, H, W), NCHW or channels_last; half types are summed in float32.
        boxes: (K, 5) batch index and xyxy in image pixels, or a list with (L, 4) for each image.
            Any floating dtype, also another one than that of `input`.
        output_size: bins, (height, width) or one number for both.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin in each direction; <= 0: one per feature pixel, rounded up.
            At most 2**20.
        aligned: True: shift boxes by half a feature pixel, so that pixel centres are at +0.5, and
            allow boxes smaller than one feature pixel.

    Returns:
        (K, C, height, width) in the dtype and memory layout of `input`.

    Raises:
        ValueError: output_size below 1; a list of boxes of a wrong shape.
        RuntimeError: wrong shape, dtype or device.
    """
    height, width = height_and_width(output_size)
    rois = boxes if isinstance(boxes, Tensor) else _rois(boxes)
    with library.skip_autograd(input, rois):
        return torch.ops.fastdet.roi_align(
            input, rois, spatial_scale, height, width, sampling_ratio, aligned
        )


class RoIAlign(nn.Module):
    """`roi_align` as a module, with torchvision's signature."""

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
        """The arguments, for repr."""
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
    """`roi_align` of each box from the pyramid level that fits the box's size, in one call.

    Definition: `torchvision.ops.MultiScaleRoIAlign`. The level is given by eq. 1 of "Feature
    Pyramid Networks" (https://arxiv.org/abs/1612.03144). It is found by comparing areas, not by a
    logarithm, so it is the same on every device. Differentiable in `features`.

    Args:
        features: at most 8 levels (B, C, H_l, W_l), finest first. The result has the memory layout
            of the first level.
        boxes: (B, K, 4) xyxy in image pixels.
        counts: (B,) int64; only the first counts[b] rows of image b are read. None: all K rows.
        output_size: bins, (height, width) or one number for both.
        scales: feature pixels per image pixel of each level, in descending order.
        sampling_ratio: as in `roi_align`.
        canonical_scale: side in pixels of a square box that is assigned to `canonical_level`.
        canonical_level: -log2 of that level's scale.
        aligned: as in `roi_align`.

    Returns:
        (B, K, C, height, width); rows from an image's count on are 0.

    Raises:
        ValueError: output_size or canonical_scale below 1; scales not in descending order.
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
    """`multiscale_roi_align` for lists of boxes, as a module with torchvision's signature.

    A level's scale is the power of two that is nearest to its height over the image's height.
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
        """Pools the boxes of each image.

        Args:
            x: feature maps by name, finest first; only the names in `featmap_names` are read.
            boxes: for each image (L, 4) xyxy in pixels.
            image_shapes: (height, width) of each image. The largest height gives the scales.

        Returns:
            (sum of L, C, height, width).
        """
        if not image_shapes:
            raise ValueError("image_shapes: expected one for each image, got an empty list")
        features = [level for name, level in x.items() if name in self.featmap_names]
        # Under autocast, the levels may have different dtypes.
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
        """The arguments, for repr."""
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


def add_multiscale_grad(
    sums: Sequence[Tensor],
    grad: Tensor,
    boxes: Tensor,
    counts: Tensor | None,
    scales: Sequence[float],
    sampling_ratio: int = 2,
    canonical_scale: int = 224,
    canonical_level: int = 4,
    aligned: bool = False,
) -> None:
    """Adds the gradients of `multiscale_roi_align`'s features to `sums`. On the CPU only.

    So the gradient of its result need not live as a whole: some RoIs at a time are enough.

    Args:
        sums: (B, C, H_l, W_l) in channels_last, float32 or float64.
        grad: (B, K, C, height, width), the gradient of the result for these boxes.
        boxes: (B, K, 4) xyxy in image pixels.
        counts: (B,) int64, or None: all K rows.
        scales, sampling_ratio, canonical_scale, canonical_level, aligned: those of the call.

    Raises:
        RuntimeError: wrong shape, dtype, layout or device.
    """
    torch.ops.fastdet.multiscale_roi_align_add_grad(
        list(sums),
        grad,
        boxes,
        counts,
        list(scales),
        sampling_ratio,
        canonical_scale,
        canonical_level,
        aligned,
    )


# ---- shapes, layouts, gradients ------------------------------------------------------------------


def is_channels_last(features: Tensor) -> bool:
    """Whether the strides are channels_last: the same test as in csrc/tensors/feature_layout.h."""
    return features.stride(-3) == 1 and features.stride(-1) != 1


def empty_features(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    """Uninitialised (..., C, H, W), contiguous or channels_last."""
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


@library.register_fake("fastdet::multiscale_roi_align_add_grad")
def _(
    sums: list[Tensor],
    grad: Tensor,
    boxes: Tensor,
    counts: Tensor | None,
    scales: list[float],
    sampling_ratio: int,
    canonical_scale: int,
    canonical_level: int,
    aligned: bool,
) -> None:
    return None


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
