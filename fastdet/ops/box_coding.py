# SPDX-License-Identifier: BSD-3-Clause
"""Encodes boxes as regression deltas relative to anchors or proposals, and decodes them."""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import library

Weights = tuple[float, float, float, float]


def check_weights(weights: Weights) -> None:
    """Raises ValueError unless there are four weights, all positive and finite."""
    if len(weights) != 4 or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: expected four finite numbers > 0, got {weights}")


def _rows(op: str, name: str, rows: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and anchors in one dtype and broadcast to one shape. Broadcasting makes views only."""
    dtype = torch.promote_types(rows.dtype, anchors.dtype)
    shapes = f"{name} {tuple(rows.shape)} and anchors {tuple(anchors.shape)}"
    if rows.shape[-1:] != (4,) or anchors.shape[-1:] != (4,):
        raise ValueError(f"{op}: expected rows of 4, got {shapes}")
    try:
        shape = torch.broadcast_shapes(rows.shape, anchors.shape)
    except RuntimeError as error:
        raise ValueError(f"{op}: expected shapes that broadcast, got {shapes}") from error
    return rows.to(dtype).expand(shape), anchors.detach().to(dtype).expand(shape)


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Encodes boxes as deltas relative to anchors. `decode_boxes` is the inverse.

    Definition: torchvision's `BoxCoder.encode_single`, with one difference. If a side of the box or
    of the anchor is not positive and finite, the deltas are zeros instead of inf or NaN: so padded
    rows cannot make a masked loss NaN. There is no gradient.

    Args:
        boxes: (..., 4) xyxy in pixels.
        anchors: (..., 4) xyxy in pixels; broadcasts with boxes.
        weights: factors that dx, dy, dw, dh are multiplied by; > 0.

    Returns:
        (..., 4) dx, dy, dw, dh in the common dtype of the arguments; half types are computed in
        float32.

    Raises:
        ValueError: shapes that do not broadcast; a weight that is not positive and finite.
        RuntimeError: wrong dtype or device.
    """
    check_weights(weights)
    boxes, anchors = _rows("encode_boxes", "boxes", boxes.detach(), anchors)
    return torch.ops.fastdet.encode_boxes(boxes, anchors, *weights)


def decode_boxes(
    deltas: Tensor,
    anchors: Tensor,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    sizes: Tensor | None = None,
) -> Tensor:
    """Decodes deltas relative to anchors into boxes. With sizes, boxes are clipped to the images.

    Definition: torchvision's `BoxCoder.decode_single` (dw and dh clamped to log(1000 / 16)) and
    `clip_boxes_to_image`, in one pass. Differentiable in the deltas: the gradient is 0 where a
    value is clamped or clipped, as in `torch.clamp`. Anchors have no gradient.

    Args:
        deltas: (..., 4) dx, dy, dw, dh.
        anchors: (..., 4) xyxy in pixels; broadcasts to the shape of deltas.
        weights: factors that dx, dy, dw, dh are divided by; > 0.
        sizes: (B, 2) int64 height and width of each image; B is the first dimension of deltas.

    Returns:
        (..., 4) xyxy in pixels, in the common dtype of deltas and anchors: float32 for float32
        anchors with half deltas. Half types are computed in float32.

    Raises:
        ValueError: anchors that do not broadcast to deltas; a weight that is not positive and
            finite.
        RuntimeError: wrong dtype or device; wrong shape of sizes.
    """
    check_weights(weights)
    shape = deltas.shape
    deltas, anchors = _rows("decode_boxes", "deltas", deltas, anchors)
    if deltas.shape != shape:
        raise ValueError(
            "decode_boxes: anchors: expected a shape that broadcasts to deltas "
            f"{tuple(shape)}, got one that makes it {tuple(deltas.shape)}"
        )
    return torch.ops.fastdet.decode_boxes(deltas, anchors, *weights, sizes)


@library.register_fake("fastdet::encode_boxes")
def _(boxes: Tensor, anchors: Tensor, wx: float, wy: float, ww: float, wh: float) -> Tensor:
    return boxes.new_empty(boxes.shape)


@library.register_fake("fastdet::decode_boxes")
def _(
    deltas: Tensor,
    anchors: Tensor,
    wx: float,
    wy: float,
    ww: float,
    wh: float,
    sizes: Tensor | None,
) -> Tensor:
    return deltas.new_empty(deltas.shape)


@library.register_fake("fastdet::decode_boxes_backward")
def _(
    grad: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    wx: float,
    wy: float,
    ww: float,
    wh: float,
    sizes: Tensor | None,
) -> Tensor:
    return deltas.new_empty(deltas.shape)


def _setup_context(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    deltas, anchors, *weights, sizes = inputs
    ctx.save_for_backward(deltas, anchors, sizes)
    ctx.weights = weights  # pyright: ignore[reportAttributeAccessIssue]


def _backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    deltas, anchors, sizes = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    weights = ctx.weights  # pyright: ignore[reportAttributeAccessIssue]
    grad_deltas = torch.ops.fastdet.decode_boxes_backward(grad, deltas, anchors, *weights, sizes)
    return grad_deltas, None, None, None, None, None, None


torch.library.register_autograd("fastdet::decode_boxes", _backward, setup_context=_setup_context)
