# SPDX-License-Identifier: BSD-3-Clause
"""The IoU of every pair of boxes: plain, generalized (GIoU), distance (DIoU), complete (CIoU)."""

import math
from typing import Any

import torch
from torch import Tensor

from . import library

FORMATS = ("xyxy", "xywh", "cxcywh")
_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
INTEGERS = (*_SIGNED, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def check_eps(eps: float) -> None:
    """Raises ValueError unless it is finite and not negative."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number >= 0, got {eps}")


def _floating(boxes: Tensor) -> Tensor:
    """Integers in float32, and all other types, of which the op takes the floating ones."""
    return boxes.float() if boxes.dtype in INTEGERS else boxes


def _corners(boxes: Tensor, fmt: str) -> Tensor:
    """Boxes as xyxy in a floating type. Corners are computed in float32 or float64."""
    boxes = _floating(boxes)
    if fmt != "xyxy" and boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    if fmt == "xyxy" or boxes.shape[-1:] != (4,):  # the op reports a wrong shape
        return boxes
    point, sides = boxes[..., :2], boxes[..., 2:]
    if fmt == "cxcywh":
        point = point - sides / 2
    return torch.cat([point, point + sides], -1)


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union of every pair of boxes.

    Definition: `torchvision.ops.box_iou`, but where the union is not positive the IoU is 0, never
    NaN. Differentiable once, in both arguments. Half types and integers are computed and returned
    in float32. Memory beyond the result: O(N + M).

    Args:
        boxes1: (N, 4) or (B, N, 4) in pixels.
        boxes2: (M, 4) or (B, M, 4), on the same device.
        fmt: format of both: "xyxy", "xywh" (upper left corner, width, height) or "cxcywh" (centre,
            width, height).

    Returns:
        (N, M) or (B, N, M), in [0, 1]; float64 if either argument is float64, else float32.

    Raises:
        ValueError: unknown fmt.
        RuntimeError: wrong shape or device.
    """
    if fmt not in FORMATS:
        raise ValueError(f"fmt: expected one of {FORMATS}, got {fmt!r}")
    boxes1, boxes2 = _corners(boxes1, fmt), _corners(boxes2, fmt)
    with library.skip_autograd(boxes1, boxes2):
        return torch.ops.fastdet.box_iou(boxes1, boxes2)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalized IoU of every pair: the IoU minus the uncovered share of the enclosing box.

    Definition: `torchvision.ops.generalized_box_iou` (https://arxiv.org/abs/1902.09630), but a term
    whose denominator is not positive is 0. Differentiable once, in both arguments. Half types and
    integers are computed, and returned, in float32.

    Args:
        boxes1: (N, 4) or (B, N, 4) xyxy in pixels.
        boxes2: (M, 4) or (B, M, 4), on the same device.

    Returns:
        (N, M) or (B, N, M), in [-1, 1]; float64 if either argument is float64, else float32.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    boxes1, boxes2 = _floating(boxes1), _floating(boxes2)
    with library.skip_autograd(boxes1, boxes2):
        return torch.ops.fastdet.generalized_box_iou(boxes1, boxes2)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Distance IoU of every pair: the IoU minus the squared, normalised distance of the centres.

    The squared distance is divided by the squared diagonal of the enclosing box.

    Definition: `torchvision.ops.distance_box_iou` (https://arxiv.org/abs/1911.08287), but a term
    whose denominator is not positive is 0. Differentiable once, in both arguments. Half types and
    integers are computed, and returned, in float32.

    Args:
        boxes1: (N, 4) or (B, N, 4) xyxy in pixels.
        boxes2: (M, 4) or (B, M, 4), on the same device.
        eps: added to the squared diagonal.

    Returns:
        (N, M) or (B, N, M), in [-1, 1]; float64 if either argument is float64, else float32.

    Raises:
        ValueError: eps negative or not finite.
        RuntimeError: wrong shape, dtype or device.
    """
    check_eps(eps)
    boxes1, boxes2 = _floating(boxes1), _floating(boxes2)
    with library.skip_autograd(boxes1, boxes2):
        return torch.ops.fastdet.distance_box_iou(boxes1, boxes2, eps)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU of every pair: the distance IoU minus a term for different aspect ratios.

    Definition: `torchvision.ops.complete_box_iou` (https://arxiv.org/abs/1911.08287), but a term
    whose denominator is not positive is 0. Differentiable once, in both arguments; the weight of
    the aspect term is a constant in the gradient, as in torchvision. Half types and integers are
    computed, and returned, in float32.

    Args:
        boxes1: (N, 4) or (B, N, 4) xyxy in pixels.
        boxes2: (M, 4) or (B, M, 4), on the same device.
        eps: added to the squared diagonal and to the denominator of the aspect term's weight.

    Returns:
        (N, M) or (B, N, M); float64 if either argument is float64, else float32.

    Raises:
        ValueError: eps negative or not finite.
        RuntimeError: wrong shape, dtype or device.
    """
    check_eps(eps)
    boxes1, boxes2 = _floating(boxes1), _floating(boxes2)
    with library.skip_autograd(boxes1, boxes2):
        return torch.ops.fastdet.complete_box_iou(boxes1, boxes2, eps)


def result_dtype(boxes1: Tensor, boxes2: Tensor) -> torch.dtype:
    """The dtype in which IoUs and their losses are computed and returned."""
    return torch.float64 if torch.float64 in (boxes1.dtype, boxes2.dtype) else torch.float32


def _fake(boxes1: Tensor, boxes2: Tensor, eps: float = 0.0) -> Tensor:
    shape = (*boxes1.shape[:-1], boxes2.size(-2))
    return boxes1.new_empty(shape, dtype=result_dtype(boxes1, boxes2))


def _fake_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _register(op: str, kind: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.eps = inputs[2:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        boxes1, boxes2 = ctx.saved_tensors
        eps = ctx.eps[0] if ctx.eps else 0.0
        grads = torch.ops.fastdet.box_iou_backward(grad, boxes1, boxes2, eps, kind)
        return (*grads, *(None for _ in ctx.eps))

    library.register_fake(f"fastdet::{op}")(_fake)
    torch.library.register_autograd(f"fastdet::{op}", backward, setup_context=setup_context)


_register("box_iou", "iou")
_register("generalized_box_iou", "generalized")
_register("distance_box_iou", "distance")
_register("complete_box_iou", "complete")
library.register_fake("fastdet::box_iou_backward")(_fake_backward)
library.forbid_second_derivative("fastdet::box_iou_backward")
