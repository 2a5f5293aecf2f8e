# SPDX-License-Identifier: BSD-3-Clause
"""From uint8 images, as they are decoded and augmented, to the float32 ones that a model takes.

Decoders and torch's uint8 resize are quickest where the three samples of a pixel lie together;
models and readers of a batch expect three planes. `ToFloat` is where one becomes the other.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.weak import WeakTensorKeyDictionary
from torchvision import tv_tensors
from torchvision.transforms import v2

from fastdet.memory import keep_freed_memory

# The bytes that an image was made of, as long as that image lives.
_bytes_of = WeakTensorKeyDictionary()


class ToFloat(v2.ToDtype):
    """v2.ToDtype(torch.float32, scale=True), whose images are contiguous.

    In a worker process it remembers the bytes of each image: `collate` sends those, a quarter of
    the floats, to the training.
    """

    def __init__(self) -> None:
        super().__init__(torch.float32, scale=True)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Of an image; anything else is returned as it is."""
        if not (isinstance(inpt, tv_tensors.Image) and inpt.dtype == torch.uint8):
            return super().transform(inpt, params)
        in_worker = get_worker_info() is not None
        if in_worker:
            keep_freed_memory()
        planes = contiguous(inpt.as_subclass(torch.Tensor))
        image = tv_tensors.Image(from_bytes(planes))
        if in_worker:
            _bytes_of[image] = planes
        return image


def contiguous(image: Tensor) -> Tensor:
    """As Tensor.contiguous, of any image on the CPU; NumPy is twice as quick for bytes."""
    if image.is_contiguous() or image.device.type != "cpu":
        return image.contiguous()
    return torch.from_numpy(np.ascontiguousarray(image.numpy()))


def from_bytes(image: Tensor) -> Tensor:
    """What v2.ToDtype makes of a uint8 image."""
    return image.to(torch.float32).mul_(1.0 / 255)


def bytes_of(image: Tensor) -> Tensor | None:
    """The uint8 image of which `from_bytes` makes exactly this one, where that is known."""
    planes = _bytes_of.get(image)
    if planes is None or planes.shape != image.shape:
        return None
    # It may have been written to since. By parts, since new memory costs more than the comparison.
    part = torch.empty(min(2**18, planes.numel()))
    for of_bytes, of_image in zip(
        planes.flatten().split(2**18), image.flatten().split(2**18), strict=True
    ):
        made = part[: len(of_bytes)].copy_(of_bytes).mul_(1.0 / 255)
        if not np.array_equal(made.numpy(), of_image.numpy()):
            return None
    return planes
