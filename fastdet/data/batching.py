# SPDX-License-Identifier: BSD-3-Clause
"""From dataset items to what a detector takes: lists, since images differ in size.

No padding: `model.pad` makes the batch tensors.

A worker process hands each tensor over in a shared memory file of its own, which costs more than a
picture's decoding if it is made of floats. So a batch of a worker is packed: images that were made
of bytes travel as these, all in one file, and small tensors in the message itself.
Invariant: a batch of a worker equals that without workers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastdet.data.floats import bytes_of, contiguous, from_bytes

_SMALL = 2**14  # bytes
_SENT = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}

Images = list[Tensor]
Targets = list[dict[str, Any]]


def collate(items: list[tuple[Any, dict[str, Any]]]) -> tuple[Images, Targets]:
    """A DataLoader's `collate_fn`.

    Args:
        items: of a `CocoDetection`.

    Returns:
        The images and the targets, in order. tv_tensors become plain, contiguous tensors, which
        spares the model the cost of a tensor subclass at every operation.
    """
    images = [_plain(image) for image, _ in items]
    targets = [{key: _plain(value) for key, value in target.items()} for _, target in items]
    if get_worker_info() is None:
        return images, targets
    packed = _Packed((images, targets))
    packed.sources = [bytes_of(image) for image, _ in items]
    return packed


class _Packed(tuple[Any, Any]):
    """(images, targets) that become small when they are pickled.

    Attributes:
        sources: the bytes that each image was made of, or None.
    """

    sources: list[Tensor | None]

    def __reduce__(self) -> Any:
        images, targets = self
        known = [source for source in self.sources if source is not None]
        joined = _shared(known) if known else None
        shapes = [
            image if source is None else tuple(source.shape)
            for image, source in zip(images, self.sources, strict=True)
        ]
        small = [{key: _as_message(value) for key, value in one.items()} for one in targets]
        return _unpacked, (joined, shapes, small)


def _shared(images: list[Tensor]) -> Tensor:
    """All bytes of the images, one behind the other, in one file of shared memory."""
    sizes = [image.numel() for image in images]
    storage = images[0].untyped_storage()._new_shared(sum(sizes))
    joined = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (sum(sizes),))  # pyright: ignore
    for part, image in zip(joined.split(sizes), images, strict=True):
        part.copy_(image.flatten())
    return joined


def _unpacked(
    joined: Tensor | None, shapes: list[Any], targets: list[dict[str, Any]]
) -> tuple[Images, Targets]:
    images, start = [], 0
    for shape in shapes:
        if joined is None or isinstance(shape, Tensor):
            images.append(shape)
            continue
        size = int(np.prod(shape))
        images.append(from_bytes(joined[start : start + size].view(shape)))
        start += size
    return images, [
        {key: _from_message(value) for key, value in target.items()} for target in targets
    ]


def _as_message(value: Any) -> Any:
    # Not to fail on any tensor: a batch that cannot be pickled is one that never arrives.
    is_small = isinstance(value, Tensor) and value.nbytes <= _SMALL
    plain = is_small and value.device.type == "cpu" and not value.requires_grad
    if plain and value.dtype in _SENT:
        return _Small(value.numpy())
    return value


def _from_message(value: Any) -> Any:
    return torch.from_numpy(value.array) if isinstance(value, _Small) else value


class _Small:
    """A tensor's array, so that an array that is a target's own stays one."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


def _plain(value: Any) -> Any:
    return contiguous(value.as_subclass(torch.Tensor)) if isinstance(value, Tensor) else value
