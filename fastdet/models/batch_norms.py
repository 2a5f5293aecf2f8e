# SPDX-License-Identifier: BSD-3-Clause
"""What the BatchNorms of a body do in training, and what replaces them.

A BatchNorm normalises with the statistics of the batch, which a small batch estimates badly. So
a pretrained body keeps those of its pretraining. timm's layers that join a norm and an activation
are replaced like plain ones.
"""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers.norm_act import (
    BatchNormAct2d,
    GroupNormAct,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from torch import Tensor, nn
from typing_extensions import Self

from fastdet.ops.tracing import is_eager

BatchNormMode = Literal["frozen", "eval", "train", "sync", "group"]

GROUPS = 32  # at most, of a GroupNorm


class _FixedStatistics(nn.Module):
    """Keeps a norm in eval mode when its model goes to training mode."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.training = False
        return self


class FixedBatchNorm2d(_FixedStatistics, nn.BatchNorm2d):
    """A BatchNorm2d that always uses its running statistics; its weights are trained."""


class FixedBatchNormAct2d(_FixedStatistics, BatchNormAct2d):
    """timm's BatchNormAct2d that always uses its running statistics; its weights are trained."""


class AnySizeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that also trains on a map of one pixel in a batch of one image.

    One value has no variance. There the running statistics are used and stay as they are.

    A gradient of another layout than the map's, such as a part of the gradient of a concatenation,
    is copied into the map's: torch's backward on the CPU is several times slower with two layouts.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        if not self.training or input.shape[0] * input.shape[2] * input.shape[3] > 1:
            result = super().forward(input)
        else:
            result = F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if is_eager(result) and result.requires_grad and _needs_one_layout(result):
            result.register_hook(_in_channels_last)
        return result


def _needs_one_layout(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


def _in_channels_last(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)


def with_batch_norms(body: Any, mode: BatchNormMode) -> Any:
    """The body with its BatchNorms as `mode` says; it is changed in place.

    Args:
        body: a module.
        mode: "frozen": fixed statistics and weights. "eval": fixed statistics, the weights are
            trained. "train": the statistics of the batch. "sync": those of the batches of all
            processes; in one process the same as "train". "group": a GroupNorm instead, of 32
            groups or of the largest number that divides both 32 and the channels.

    Raises:
        ValueError: another mode.
    """
    check_batch_norm(mode)
    if mode == "frozen":
        return freeze_batch_norm_2d(body)
    if mode == "sync":
        return convert_sync_batchnorm(body)
    if mode == "eval":
        _fix_statistics(body)
    if mode == "group":
        _replace_by_group_norms(body)
    return body


def check_batch_norm(mode: str) -> None:
    """Raises ValueError unless `mode` is one of `BatchNormMode`."""
    if mode not in get_args(BatchNormMode):
        modes = ", ".join(get_args(BatchNormMode))
        raise ValueError(f"batch_norm: expected one of {modes}, got {mode!r}")


def start_batch_norms_at_one(body: nn.Module) -> None:
    """Sets all BatchNorm weights to 1, as in torchvision.

    timm starts the last BatchNorm of each residual branch with zeros.
    """
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)


def _fix_statistics(body: nn.Module) -> None:
    """Gives the norms a class that stays in eval mode; tensors and names stay."""
    for module in body.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = FixedBatchNorm2d
        elif type(module) is BatchNormAct2d:
            module.__class__ = FixedBatchNormAct2d
        elif isinstance(module, nn.BatchNorm2d):
            raise ValueError(
                f'batch_norm: expected another value than "eval" for {type(module).__name__}'
            )
        else:
            continue
        module.train()


def _replace_by_group_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _group_norm(child))
        else:
            _replace_by_group_norms(child)


def _group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """A GroupNorm with the weights of a BatchNorm, and its activation if it has one."""
    groups = math.gcd(GROUPS, norm.num_features)
    device, dtype = norm.weight.device, norm.weight.dtype
    if isinstance(norm, BatchNormAct2d):
        new: Any = GroupNormAct(norm.num_features, groups, norm.eps, device=device, dtype=dtype)
        new.drop, new.act = norm.drop, norm.act
    else:
        new = nn.GroupNorm(groups, norm.num_features, norm.eps, device=device, dtype=dtype)
    with torch.no_grad():
        new.weight.copy_(norm.weight)
        new.bias.copy_(norm.bias)
    new.weight.requires_grad_(norm.weight.requires_grad)
    new.bias.requires_grad_(norm.bias.requires_grad)
    return new
