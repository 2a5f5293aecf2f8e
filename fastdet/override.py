# SPDX-License-Identifier: BSD-3-Clause
"""Runs torchvision's operators on fastdet's kernels, so that existing code gets faster unchanged.

torchvision's Python functions, its autograd and its autocast all call these operators:
`torchvision::nms`, `torchvision::roi_align`, `torchvision::deform_conv2d`, and the backward ones of
the last two. Their CPU and CUDA kernels are replaced in the dispatcher, for the whole process.
torchvision's fake kernels, autograd and autocast stay. Arguments that our kernels do not support go
to torchvision's kernels, which compute the result or raise torchvision's error.

`batched_nms` is not an operator. It shifts the boxes of each class, in the dtype of the boxes, and
calls nms. In float16 the shift overflows; in bfloat16 it rounds different boxes to the same place.
Therefore the two functions that batched_nms calls are replaced, too. This also works where
batched_nms is already imported.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdet.ops import library  # noqa: F401
from fastdet.replacement import Override, Replacements

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# The functions that torchvision.ops.boxes.batched_nms calls, for few boxes and for many boxes.
_BATCHED_NMS = ("_batched_nms_coordinate_trick", "_batched_nms_vanilla")


def override_torchvision() -> Override:
    """Runs torchvision's nms, roi_align and deform_conv2d on our kernels, for the whole process.

    This works on the CPU, and on CUDA if both packages have CUDA kernels. All code that calls these
    operators uses fastdet's kernels: `torchvision.ops.nms`, `batched_nms`, `roi_align`,
    `MultiScaleRoIAlign`, `deform_conv2d` and `DeformConv2d`, torchvision's detectors, and other
    packages. Indices are the same as before. Values are the same to 1e-5, or to the rounding error
    of torchvision's sample positions if that is larger. There are these differences:

    - NMS drops a box with a NaN score or a coordinate that is not finite. The IoU of two boxes
      without area is 0; in torchvision it is NaN.
    - `batched_nms` compares ids and does not shift boxes, so it is exact in every dtype. Compiled,
      traced and scripted code keeps torchvision's version.
    - RoIAlign returns 0 for a box that is not finite or whose batch index is out of range. Its
      backward is deterministic on the CPU. Half types are summed in float32.
    - A tap of deform_conv2d whose offset is NaN or infinite contributes nothing. Its backward is
      deterministic on the CPU. Half types are summed in float32.

    The override is active in all threads until it is undone. While you call or undo it, no other
    thread may run these operators. Overrides can be nested and undone in any order: torchvision's
    kernels return after the last undo. If you do not keep the handle, the override stays active.

    Returns:
        A handle with `undo()`. It is also a context manager: `with override_torchvision(): ...`.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision's own operators did not load.
    """
    import torchvision  # noqa: F401  (defines the operators)

    return _REPLACEMENTS.override()


def _replace_all(replacements: Replacements) -> None:
    replacements.at_end(_register()._destroy)
    from torchvision.ops import boxes

    for name in _BATCHED_NMS:
        replacements.replace(boxes, name, _batched_nms)


_REPLACEMENTS = Replacements(_replace_all)


def _register() -> torch.library.Library:
    if not _has_kernel("torchvision::nms", "CPU"):
        raise RuntimeError("override_torchvision: torchvision's operators did not load")
    registrations = torch.library.Library("torchvision", "IMPL")
    with warnings.catch_warnings():
        # Up to torch 2.13 the dispatcher warns when a kernel replaces another one.
        warnings.filterwarnings("ignore", message=r"(?s).*Overriding a previously registered")
        for name, ours, kernel in (
            ("nms", "nms", _nms),
            ("roi_align", "roi_align", _roi_align),
            ("_roi_align_backward", "roi_align_backward", _roi_align_backward),
            ("deform_conv2d", "deform_conv2d", _deform_conv2d),
            ("_deform_conv2d_backward", "deform_conv2d_backward", _deform_conv2d_backward),
        ):
            for key in ("CPU", "CUDA"):
                if _has_kernel(f"torchvision::{name}", key) and _has_kernel(
                    f"fastdet::{ours}", key
                ):
                    theirs = torch.library.get_kernel(f"torchvision::{name}", key)
                    registrations.impl(name, kernel(theirs), key, with_keyset=True)
    return registrations


def _has_kernel(op: str, key: str) -> bool:
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(op, key)
    except RuntimeError:  # no such operator
        return False


def _batched_nms(theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        if (
            not can_run("batched_nms", boxes, scores, iou_threshold)
            or idxs.shape != scores.shape
            or idxs.is_floating_point()
            or idxs.device != boxes.device
        ):
            return theirs(boxes, scores, idxs, iou_threshold)
        return torch.ops.fastdet.batched_nms(boxes, scores, idxs.long(), iou_threshold)

    return batched_nms


def can_run(operator: str, boxes: Tensor, scores: Tensor, iou_threshold: float) -> bool:
    """Whether our operator may take the place of a Python function.

    Not in code that is compiled or traced, which outlives an override.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and _are_boxes_and_scores(boxes, scores, iou_threshold)
        and _has_kernel(f"fastdet::{operator}", boxes.device.type.upper())
    )


def _are_boxes_and_scores(boxes: Tensor, scores: Tensor, iou_threshold: float) -> bool:
    return (
        boxes.dtype in _FLOATING
        and boxes.dim() == 2
        and boxes.shape[1] == 4
        and scores.shape == boxes.shape[:1]
        and scores.dtype == boxes.dtype
        and scores.device == boxes.device
        and 0 <= iou_threshold <= 1
    )


def _nms(theirs: Any) -> Callable[..., Tensor]:
    ours = torch.ops.fastdet.nms.default

    def nms(keys: Any, dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        if not _are_boxes_and_scores(dets, scores, iou_threshold):
            return theirs.call_boxed(keys, dets, scores, iou_threshold)
        return ours(dets, scores, iou_threshold)

    return nms


def _are_features_and_rois(features: Tensor, rois: Tensor) -> bool:
    return (
        features.dtype in _FLOATING
        and features.dim() == 4
        and rois.dim() == 2
        and rois.shape[1] == 5
        and rois.dtype == features.dtype
        and rois.device == features.device
    )


def _roi_align(theirs: Any) -> Callable[..., Tensor]:
    ours = torch.ops.fastdet.roi_align.default

    def roi_align(
        keys: Any,
        input: Tensor,
        rois: Tensor,
        spatial_scale: float,
        pooled_height: int,
        pooled_width: int,
        sampling_ratio: int,
        aligned: bool,
    ) -> Tensor:
        arguments = (spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned)
        usable = (
            _are_features_and_rois(input, rois)
            and min(input.shape[2:]) > 0
            and min(pooled_height, pooled_width) > 0
        )
        if not usable:
            return theirs.call_boxed(keys, input, rois, *arguments)
        # The result is always NCHW, as in torchvision's kernel and its fake kernel.
        return ours(input, rois, *arguments).contiguous()

    return roi_align


def _roi_align_backward(theirs: Any) -> Callable[..., Tensor]:
    ours = torch.ops.fastdet.roi_align_backward.default

    def roi_align_backward(
        keys: Any,
        grad: Tensor,
        rois: Tensor,
        spatial_scale: float,
        pooled_height: int,
        pooled_width: int,
        batch_size: int,
        channels: int,
        height: int,
        width: int,
        sampling_ratio: int,
        aligned: bool,
    ) -> Tensor:
        sizes = (batch_size, channels, height, width)
        usable = (
            _are_features_and_rois(grad, rois)
            and grad.shape == (rois.shape[0], channels, pooled_height, pooled_width)
            and min(height, width, pooled_height, pooled_width) > 0
        )
        if not usable:
            pooled = (pooled_height, pooled_width)
            return theirs.call_boxed(
                keys, grad, rois, spatial_scale, *pooled, *sizes, sampling_ratio, aligned
            )
        deterministic = torch.are_deterministic_algorithms_enabled()
        return ours(
            grad, rois, spatial_scale, *sizes, sampling_ratio, aligned, False, deterministic
        )

    return roi_align_backward


class _DeformConv(NamedTuple):
    """The arguments of torchvision's deform_conv2d, in the order of its operator."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dil_h: int
    dil_w: int
    groups: int
    offset_groups: int
    use_mask: bool

    @property
    def steps(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding and dilation, as our operator takes them."""
        return (
            [self.stride_h, self.stride_w],
            [self.pad_h, self.pad_w],
            [self.dil_h, self.dil_w],
        )

    def places(self) -> tuple[int, ...]:
        """The height and width of the output."""
        return tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                self.input.shape[2:], self.weight.shape[2:], *self.steps, strict=True
            )
        )

    def usable(self) -> bool:
        """Whether our kernel takes the arguments."""
        tensors = (self.input, self.weight, self.offset, self.bias)
        tensors += (self.mask,) if self.use_mask else ()
        return (
            all(x.dtype == self.input.dtype and x.device == self.input.device for x in tensors)
            and self.input.dtype in _FLOATING
            and self.input.dim() == self.weight.dim() == 4
            and min(*self.input.shape[1:], *self.weight.shape[1:]) > 0
            and min(*self.steps[0], *self.steps[2], self.groups, self.offset_groups) > 0
            and min(*self.steps[1]) >= 0
            and self._fits()
        )

    def _fits(self) -> bool:
        images, channels = self.input.shape[:2]
        points = self.offset_groups * self.weight.shape[2] * self.weight.shape[3]
        places = self.places()
        return (
            min(places) > 0
            and channels == self.groups * self.weight.shape[1]
            and self.weight.shape[0] % self.groups == channels % self.offset_groups == 0
            and self.offset.shape == (images, 2 * points, *places)
            and (not self.use_mask or self.mask.shape == (images, points, *places))
            and self.bias.shape == self.weight.shape[:1]
        )


def _deform_conv2d(theirs: Any) -> Callable[..., Tensor]:
    ours = torch.ops.fastdet.deform_conv2d.default

    def deform_conv2d(keys: Any, *arguments: Any) -> Tensor:
        call = _DeformConv(*arguments)
        if not call.usable():
            return theirs.call_boxed(keys, *arguments)
        mask = call.mask if call.use_mask else None
        found = ours(call.input, call.offset, call.weight, call.bias, mask, *call.steps)
        # The result is always NCHW, as in torchvision's kernel and its fake kernel.
        return found.contiguous()

    return deform_conv2d


def _deform_conv2d_backward(theirs: Any) -> Callable[..., tuple[Tensor, ...]]:
    ours = torch.ops.fastdet.deform_conv2d_backward.default

    def deform_conv2d_backward(keys: Any, grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        call = _DeformConv(*arguments)
        if not (
            call.usable()
            and grad.shape == (call.input.shape[0], call.weight.shape[0], *call.places())
            and grad.dtype == call.input.dtype
            and grad.device == call.input.device
        ):
            return theirs.call_boxed(keys, grad, *arguments)
        of_input, of_offset, of_weight, of_mask, of_bias = ours(
            grad,
            call.input,
            call.offset,
            call.weight,
            call.mask if call.use_mask else None,
            *call.steps,
            torch.are_deterministic_algorithms_enabled(),
        )
        return (
            of_input.contiguous(),
            of_weight,
            of_offset,
            of_mask if call.use_mask else torch.zeros_like(call.mask),
            of_bias.to(call.bias.dtype),
        )

    return deform_conv2d_backward
