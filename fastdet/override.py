# SPDX-License-Identifier: BSD-3-Clause
"""Runs torchvision's operators on fastdet's kernels, so that existing code gets faster unchanged.

torchvision's Python functions, its autograd and its autocast all call three operators:
`torchvision::nms`, `torchvision::roi_align` and `torchvision::_roi_align_backward`. Their CPU and
CUDA kernels are replaced in the dispatcher, for the whole process. torchvision's fake kernels,
autograd and autocast stay. Arguments that our kernels do not support go to torchvision's kernels,
which compute the result or raise torchvision's error.

`batched_nms` is not an operator. It shifts the boxes of each class, in the dtype of the boxes, and
calls nms. In float16 the shift overflows; in bfloat16 it rounds different boxes to the same place.
Therefore the two functions that batched_nms calls are replaced, too. This also works where
batched_nms is already imported.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdet.ops import library  # noqa: F401
from fastdet.replacement import Override, Replacements

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# The functions that torchvision.ops.boxes.batched_nms calls, for few boxes and for many boxes.
_BATCHED_NMS = ("_batched_nms_coordinate_trick", "_batched_nms_vanilla")


def override_torchvision() -> Override:
    """Replaces the kernels of torchvision's nms and roi_align by fastdet's, for the whole process.

    This works on the CPU, and on CUDA if both packages have CUDA kernels. All code that calls these
    operators uses fastdet's kernels: `torchvision.ops.nms`, `batched_nms`, `roi_align` and
    `MultiScaleRoIAlign`, torchvision's detectors, and other packages. Indices are the same as
    before. Values are the same to 1e-5, or to the rounding error of torchvision's sample positions
    if that is larger. There are these differences:

    - NMS drops a box with a NaN score or a coordinate that is not finite. The IoU of two boxes
      without area is 0; in torchvision it is NaN.
    - `batched_nms` compares ids and does not shift boxes, so it is exact in every dtype. Compiled,
      traced and scripted code keeps torchvision's version.
    - RoIAlign returns 0 for a box that is not finite or whose batch index is out of range. Its
      backward is deterministic on the CPU. Half types are summed in float32.

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
