# SPDX-License-Identifier: BSD-3-Clause
"""The error of a result against the same operator in float64."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def error(result: Any, exact: Any) -> float:
    """The largest over the tensors of a result, which may be nested.

    Of numbers: the largest difference, as a share of the largest exact number. Of indices: the
    share that differs. Of a mask as an RLE: the share of its pixels that differs.
    """
    pairs = zip(_tensors(result), _tensors(exact), strict=True)
    return max(_error(a.detach(), b.detach()) for a, b in pairs)


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)
    elif isinstance(result, dict):
        # Imported here, so that a machine without it can measure the rest.
        from pycocotools import mask as coco_mask

        rle: Any = result
        yield torch.from_numpy(coco_mask.decode(rle))
    else:
        yield torch.as_tensor(result)


def _error(result: Tensor, exact: Tensor) -> float:
    if exact.numel() == 0:
        return float(result.numel() > 0)
    if not exact.is_floating_point():
        if result.shape == exact.shape:
            return (result != exact).double().mean().item()
        differing = set(result.tolist()) ^ set(exact.tolist())
        return len(differing) / exact.numel()
    return ((result.double() - exact).abs().max() / exact.abs().max()).item()
