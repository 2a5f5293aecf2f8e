# SPDX-License-Identifier: BSD-3-Clause
"""Memory from the system and from the C library's heap, and what goes back.

The C library takes blocks of up to 32 MiB from one heap. A weight that stays between maps that are
freed splits the free memory: later maps do not fit into the pieces, and the heap grows. So tensors
that stay are mapped from the system.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import os
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_BYTES = 1 << 16  # below, the unused rest of the last page would count
HUGE_PAGE = 1 << 21
FROM_SYSTEM = 1 << 25  # bytes; glibc takes larger blocks from the system each time
KEPT = 1 << 30  # bytes at the end of the heap
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def mapped_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of zeros whose memory goes back to the system when it is freed."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_BYTES:
        return torch.zeros(shape, dtype=dtype)
    is_private = hasattr(mmap, "MAP_PRIVATE")
    options = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if is_private else {}
    memory = mmap.mmap(-1, size, **options)
    if size >= 2 * HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # advice: may be refused
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def map_from_system(shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """(B, C, H, W) uninitialised and channels_last in huge pages, for a map that is large.

    None for a map of which the C library has memory at hand. It would take a large one from the
    system, page by page at the first writes, which can take longer than a layer.
    """
    if math.prod(shape) * dtype.itemsize < FROM_SYSTEM:
        return None
    images, channels, height, width = shape
    return mapped_empty((images, height, width, channels), dtype).permute(0, 3, 1, 2)


def trim_heap() -> None:
    """Gives free memory of the heap back to the system; no effect without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@functools.cache
def keep_freed_memory() -> bool:
    """Changes malloc in this process, once: blocks of up to 32 MiB that are freed stay with it.

    glibc gives a freed block of some MB back to the kernel, and gets it again page by page: for
    images of 640 x 480 that was a fifth of the time of a data loader's item. A process that loads
    or detects needs the same blocks for every image.

    Returns:
        Whether the C library of this process knows how.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, FROM_SYSTEM))
