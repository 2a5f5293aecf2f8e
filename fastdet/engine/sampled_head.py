# SPDX-License-Identifier: BSD-3-Clause
"""The head of an RPN in training on the CPU, with a gradient that reads few pixels.

The losses of an RPN sample a few hundred anchors, so the gradient of the head's outputs is 0 at
nearly all pixels of the pyramid. Here backward computes only with the other pixels: it gathers the
3x3 neighbourhoods of these in the maps, computes their hidden features again, and adds their
gradients to the maps'. So forward saves no hidden map. Gradients differ from those of the layers
only by rounding.

Cost of backward for n such pixels and C channels: 27 n C^2 multiply-adds, and one map of zeros for
each level. If the gradient is not 0 at many pixels, the layers run again with autograd.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.engine.winograd import is_plain
from fastdet.ops.tracing import is_eager

# Of more than one pixel in so many, layers on whole maps take less time.
LEAST_PIXELS_FOR_ONE = 8


# Their layers: `conv`, with a ReLU, then `cls_logits` and `bbox_pred`.
RPN_HEADS = ("fastdet.models.rpn.RPNHead", "torchvision.models.detection.rpn.RPNHead")


class SampledHead(NamedTuple):
    """Layers of a head.

    Attributes:
        conv: 3x3, stride 1, padding 1; a ReLU follows.
        outputs: 1x1 convolutions of its result.
    """

    conv: nn.Conv2d
    outputs: tuple[nn.Conv2d, ...]


def sampled_head(
    module: nn.Module, features: Tensor | Sequence[Tensor], most_pixels: int
) -> SampledHead | None:
    """The layers of a module for `run_sampled`; None if it does not fit or would not be faster.

    Args:
        module: any module without hooks. Heads of RPNs with one 3x3 convolution can fit.
        features: maps (B, C, H_l, W_l).
        most_pixels: how many pixels of an image get a gradient.
    """
    head = _layers(module)
    if head is None or isinstance(features, Tensor) or not torch.is_grad_enabled():
        return None
    pixels = sum(x.shape[2] * x.shape[3] for x in features)
    fits = (
        most_pixels * LEAST_PIXELS_FOR_ONE <= pixels
        and all(map(_is_usual_map, features))
        and not torch._C._are_functorch_transforms_active()
        and _is_plain_conv(head.conv, 3)
        and all(_is_plain_conv(layer, 1) for layer in head.outputs)
    )
    return head if fits else None


def _layers(module: Any) -> SampledHead | None:
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" not in RPN_HEADS or len(module.conv) != 1:
        return None
    conv, *further = module.conv[0]
    if [type(layer) for layer in further] != [nn.ReLU]:
        return None
    return SampledHead(conv, (module.cls_logits, module.bbox_pred))


def run_sampled(
    head: SampledHead,
    features: Tensor | Sequence[Tensor],
    run: Callable[[Sequence[Tensor]], Sequence[Sequence[Tensor]]],
) -> list[list[Tensor]]:
    """`run(features)`, with gradients of the layers' weights and of the features.

    Args:
        head: the layers that `run` calls, from `sampled_head`.
        features: L maps (B, C, H_l, W_l).
        run: computes for each of `head.outputs` L maps (B, O, H_l, W_l).
    """
    layers = (head.conv, *head.outputs)
    weights = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    flat = _Sampled.apply(run, len(weights), *weights, *features)
    return _in_groups(flat, len(features))


class _Sampled(torch.autograd.Function):
    """The outputs of the head, layer by layer; gradients of the weights and of the features."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        run, number, *tensors = args
        ctx.number = number
        ctx.save_for_backward(*tensors)
        return tuple(x for of_layer in run(tensors[number:]) for x in of_layer)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors = ctx.saved_tensors
        weights, features = tensors[: ctx.number], tensors[ctx.number :]
        wanted = ctx.needs_input_grad[2:]
        of_levels = [
            torch.cat([_rows(grad).to(weights[0].dtype) for grad in of_level], dim=1)
            for of_level in zip(*_in_groups(grads, len(features)), strict=True)
        ]  # L x (pixels, O of all layers)
        pixels = [of_level.ne(0).any(1).nonzero()[:, 0] for of_level in of_levels]
        many = LEAST_PIXELS_FOR_ONE * sum(map(len, pixels)) > sum(map(len, of_levels))
        if many or torch.is_grad_enabled():  # create_graph=True: layers are differentiable
            return None, None, *_dense_gradients(weights, features, grads, wanted)
        rows = [of_level[some] for of_level, some in zip(of_levels, pixels, strict=True)]
        around = [_around(some, x) for some, x in zip(pixels, features, strict=True)]
        patches = [_gathered(x, index) for x, index in zip(features, around, strict=True)]
        like = [(x.shape, x.dtype) for x in features]
        # Their gradients can take the memory of the maps, which nothing else may need now.
        del tensors, features
        ctx.maybe_clear_saved_tensors()
        of_weights, of_patches = _gradients(weights, torch.cat(patches), torch.cat(rows))
        split = of_patches.split([len(some) for some in pixels])
        of_features = (
            _spread(grad, index, *of_map) if need else None
            for grad, index, of_map, need in zip(
                split, around, like, wanted[len(weights) :], strict=True
            )
        )
        return None, None, *of_weights, *of_features


def _gradients(
    weights: Sequence[Tensor], patches: Tensor, grad: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The gradients of the weights, and (n, 9 C) those of the patches.

    Args:
        weights: weight and bias of each layer.
        patches: (n, 9 C), the pixels around n pixels of the maps.
        grad: (n, O), of the outputs of all layers at these n pixels.
    """
    conv, bias, *further = weights
    kernels, sizes = further[::2], [len(weight) for weight in further[::2]]
    filters = conv.permute(0, 2, 3, 1).flatten(1)  # (K, 9 C)
    patches = patches.to(filters.dtype)
    hidden = torch.addmm(bias, patches, filters.t()).relu_()
    last = torch.cat([weight.flatten(1) for weight in kernels])  # (O, K)
    inner = (grad @ last).masked_fill_(hidden == 0, 0)
    conv_grad = (inner.t() @ patches).view(len(conv), 3, 3, -1).permute(0, 3, 1, 2)
    found = [conv_grad, inner.sum(0)]
    kernel_grads, bias_grads = (grad.t() @ hidden).split(sizes), grad.sum(0).split(sizes)
    for kernel, kernel_grad, bias_grad in zip(kernels, kernel_grads, bias_grads, strict=True):
        found += [kernel_grad.view_as(kernel), bias_grad]
    return found, inner @ filters


def _dense_gradients(
    weights: Sequence[Tensor],
    features: Sequence[Tensor],
    grads: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of weights and features by autograd, differentiable if grad mode is on."""
    further = torch.is_grad_enabled()
    tensors = [*weights, *features]
    with torch.enable_grad():
        if not further:
            tensors = [
                tensor.detach().requires_grad_(need)
                for tensor, need in zip(tensors, wanted, strict=True)
            ]
        conv, bias, *of_outputs = tensors[: len(weights)]
        hidden = [
            F.conv2d(x.to(conv.dtype), conv, bias, padding=1).relu()
            for x in tensors[len(weights) :]
        ]
        outputs = [
            F.conv2d(x, weight, bias).to(grads[0].dtype)
            for weight, bias in _in_groups(of_outputs, 2)
            for x in hidden
        ]
        needed = [tensor for tensor, need in zip(tensors, wanted, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, needed, grads, create_graph=further))
    return [next(found) if need else None for need in wanted]


def _around(pixels: Tensor, features: Tensor) -> Tensor:
    """(n,) indices into (B, H, W) -> (n, 9), those around each pixel; -1 outside the map."""
    height, width = features.shape[2:]
    step = torch.arange(-1, 2)
    y = (pixels // width % height)[:, None] + step  # (n, 3)
    x = (pixels % width)[:, None] + step
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    index = pixels[:, None, None] + step[:, None] * width + step
    return index.where(inside, -1).flatten(1)


def _gathered(features: Tensor, index: Tensor) -> Tensor:
    """The pixels (n, 9) of a map, 0 for index -1: (n, 9 C)."""
    found = _rows(features)[index.clamp(min=0)]
    return found.masked_fill_((index < 0)[..., None], 0).flatten(1)


def _spread(grad: Tensor, index: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A map (B, C, H, W) with the sums of (n, 9 C) at the pixels (n, 9)."""
    images, channels, height, width = shape
    rows = torch.ops.aten.embedding_dense_backward(
        grad.view(-1, channels), index.flatten(), images * height * width, -1, False
    )
    return rows.to(dtype).view(images, height, width, channels).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _in_groups(values: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(values[i : i + size]) for i in range(0, len(values), size)]


def _is_usual_map(x: Tensor) -> bool:
    return (
        is_eager(x)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_plain_conv(layer: nn.Conv2d, side: int) -> bool:
    """Whether this is a Conv2d of that kernel, with a bias, and nothing else."""
    pad = side // 2
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (side, side)
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding in ((pad, pad), "same")
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.bias is not None
        and is_plain(layer.weight)
        and is_plain(layer.bias)
    )
