# SPDX-License-Identifier: BSD-3-Clause
"""Heads with BatchNorm on padded rows: the statistics are computed from the real rows only.

In torchvision the RoIs of a batch have no padding. To give the same results, a BatchNorm in
training mode excludes padding rows with a mask. All other layers process each row separately.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastdet.models.losses import widened
from fastdet.models.running import run
from fastdet.ops.tracing import is_eager


def check_batch_norms(name: str, head: nn.Module) -> None:
    """Raises ValueError if `head` has a BatchNorm that `run_on_rows` cannot give a mask."""
    if not (_is_sequential(head) or isinstance(head, nn.BatchNorm2d)):
        for inner in head.modules():
            if isinstance(inner, _NormBase) and inner.track_running_stats:
                raise ValueError(
                    f"{name}: expected BatchNorm2d only in Sequentials, where its statistics can "
                    f"exclude padding, got {type(inner).__name__} in {type(head).__name__}"
                )
        return
    for child_name, child in head.named_children():
        check_batch_norms(f"{name}.{child_name}", child)


def run_on_rows(head: nn.Module, rows: Tensor, real: Tensor) -> Any:
    """`head(rows)` for rows (N, ...). `real` (N,) bool is False for padding rows."""
    if head.training and _is_sequential(head):
        for child in head.children():
            rows = run_on_rows(child, rows, real)
        return rows
    if head.training and isinstance(head, nn.BatchNorm2d) and not _all_known(real):
        return _batch_norm(head, rows, real)
    return run(head, rows)


def _all_known(real: Tensor) -> bool:
    """Whether reading the mask costs nothing and no row is padding. Then torch's norm is faster."""
    return is_eager(real) and real.device.type == "cpu" and bool(real.all())


def _batch_norm(norm: nn.BatchNorm2d, rows: Tensor, real: Tensor) -> Tensor:
    """BatchNorm2d in training mode on the real rows of (N, C, H, W)."""
    dims = (0, 2, 3)
    x = widened(rows)
    weight = real.to(x.dtype)[:, None, None, None]
    count = (real.sum() * rows.shape[2] * rows.shape[3]).clamp(min=1)
    mean = (x * weight).sum(dims) / count
    centred = x - mean[:, None, None]
    var = (centred.square() * weight).sum(dims) / count
    if norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked += 1
            momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
            momentum = momentum * real.any()  # no update if no row is real
            norm.running_mean.add_(momentum * (mean - norm.running_mean))
            unbiased = var * (count / (count - 1).clamp(min=1))
            norm.running_var.add_(momentum * (unbiased - norm.running_var))
    scale = (var + norm.eps).rsqrt()
    shift = 0.0
    if norm.affine:
        scale, shift = scale * norm.weight, norm.bias[:, None, None]
    return (centred * scale[:, None, None] + shift).to(rows.dtype)


def _is_sequential(module: nn.Module) -> bool:
    """Whether the module's forward is that of nn.Sequential."""
    return type(module).forward is nn.Sequential.forward
