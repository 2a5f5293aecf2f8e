# SPDX-License-Identifier: BSD-3-Clause
"""The loss of a mask head."""

from typing import Any

import torch
from torch import Tensor

from . import library
from .roi_align import empty_features, is_channels_last


def mask_rcnn_loss(
    logits: Tensor, labels: Tensor, masks: Tensor, boxes: Tensor, match: Tensor
) -> Tensor:
    """Mean binary cross entropy between the mask logits of each box's class and its cropped mask.

    Definition: `maskrcnn_loss` of torchvision (https://arxiv.org/abs/1703.06870, section 3); the
    targets are those of `crop_masks`. Finite for every finite logit. Differentiable once, in
    logits. Half types are computed in float32, and the loss is float32. For the gradient only one
    channel of it, (B, K, h, w), is kept, and no logits. The result is the same, bit for bit, for
    any number of threads.

    Args:
        logits: (B, K, C, h, w); the last three dimensions contiguous or channels_last.
        labels: (B, K) int64 in [0, C), the channel that is used. Another label at a matched box
            makes the loss NaN.
        masks: (B, G, H, W) bool, or uint8 with values 0 and 1.
        boxes: (B, K, 4) xyxy in pixels.
        match: (B, K) int64, index of each box's mask. Rows whose match is outside [0, G) are
            ignored.

    Returns:
        One number, the mean over all pixels of the rows that are not ignored, 0 if all are ignored;
        float64 if logits are float64, else float32.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    loss, _, _ = torch.ops.fastdet.mask_rcnn_loss(logits, labels, masks, boxes.detach(), match)
    return loss


@library.register_fake("fastdet::mask_rcnn_loss")
def _(
    logits: Tensor, labels: Tensor, masks: Tensor, boxes: Tensor, match: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    residual = logits.new_empty((*match.shape, *logits.shape[3:]))
    return logits.new_empty((), dtype=dtype), residual, match.new_empty(())


@library.register_fake("fastdet::mask_rcnn_loss_backward")
def _(
    grad: Tensor,
    residual: Tensor,
    labels: Tensor,
    count: Tensor,
    channels: int,
    channels_last: bool,
) -> Tensor:
    images, rows, height, width = residual.shape
    return empty_features(residual, (images, rows, channels, height, width), channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, *_ = inputs
    _, residual, count = output
    ctx.channels = logits.size(2)
    ctx.channels_last = is_channels_last(logits)
    ctx.save_for_backward(residual, labels, count)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad_logits = torch.ops.fastdet.mask_rcnn_loss_backward(
        grad, *ctx.saved_tensors, ctx.channels, ctx.channels_last
    )
    return grad_logits, None, None, None, None


torch.library.register_autograd("fastdet::mask_rcnn_loss", _backward, setup_context=_setup_context)
library.forbid_second_derivative("fastdet::mask_rcnn_loss_backward")
