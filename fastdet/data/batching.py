# SPDX-License-Identifier: BSD-3-Clause
"""From dataset items to what a detector takes: lists, since images differ in size.

No copy and no padding: `model.pad` makes the batch tensors.
"""

from typing import Any

import torch
from torch import Tensor


def collate(items: list[tuple[Any, dict[str, Any]]]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """A DataLoader's `collate_fn`.

    Args:
        items: of a `CocoDetection`.

    Returns:
        The images and the targets, in order. tv_tensors become plain tensors, which spares the
        model the cost of a tensor subclass at every operation.
    """
    images = [_plain(image) for image, _ in items]
    targets = [{key: _plain(value) for key, value in target.items()} for _, target in items]
    return images, targets


def _plain(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if isinstance(value, Tensor) else value
