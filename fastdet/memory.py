# SPDX-License-Identifier: BSD-3-Clause
"""Memory from the system and from the C library's heap, and what goes back.

The C library takes blocks of up to 32 MiB from one heap. A weight that stays between maps that are
freed splits the free memory: later maps do not fit into the pieces, and the heap grows. Larger
blocks come from the system each time, page by page at the first writes, which can take longer than
a layer. So while a detector computes on the CPU, torch takes blocks of 1 MiB and more from a cache
(`cached_blocks`, csrc/memory/): they are in huge pages, and what is freed is used again. All blocks
of the cache together never take more than the most that was in use at one time. What they leave
free between two calls of a detector, other tensors take: those of an optimizer's step.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST_BYTES = 1 << 16  # below, the unused rest of the last page would count
HUGE_PAGE = 1 << 21
FROM_SYSTEM = 1 << 25  # bytes; glibc takes larger blocks from the system each time
KEPT = 1 << 30  # bytes at the end of the heap
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
VARIABLE = "FASTDET_CPU_CACHE"  # "off": torch's own allocator alone
LIBRARY = Path(__file__).resolve().parent / "libfastdet_memory.so"


class Counts(NamedTuple):
    """What the cache holds, in bytes.

    Attributes:
        used: blocks of tensors that live.
        kept: blocks that were freed and wait for tensors.
        most: the most that was used since `empty_cache`.
        from_system: how often the system was asked for a block.
    """

    used: int
    kept: int
    most: int
    from_system: int


def cached_blocks(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context for computing on a device, in which torch takes large blocks from the cache.

    It counts for all threads. Tensors may live longer than the context. Outside the context the
    cache gives out what it keeps, but takes nothing from the system. Nothing changes on other
    devices than the CPU, where there is no cache, and under torch.compile and torch.export.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    library = _library()
    return contextlib.nullcontext() if library is None else _from_cache(library)


@contextlib.contextmanager
def _from_cache(library: Any) -> Iterator[None]:
    library.fastdet_memory_begin()
    try:
        yield
    finally:
        library.fastdet_memory_end()


def cache_blocks_in_backward(loss: Tensor) -> None:
    """Lets the backward pass that begins at `loss` run as in the context of `cached_blocks`."""
    if loss.device.type != "cpu" or not loss.requires_grad or torch.compiler.is_compiling():
        return
    if _library() is not None:
        loss.register_hook(_begin_backward)


_backward_runs = False


def _begin_backward(_: Tensor) -> None:
    global _backward_runs
    if not _backward_runs:
        _backward_runs = True
        _library().fastdet_memory_begin()
    # For each loss, as the engine drops them if backward fails: then the next one's end counts.
    torch.autograd.Variable._execution_engine.queue_callback(_end_backward)


def _end_backward() -> None:
    global _backward_runs
    if _backward_runs:
        _backward_runs = False
        _library().fastdet_memory_end()


def empty_cache() -> None:
    """Gives memory that was freed back to the system: of the cache, and of glibc's heap."""
    library = _library()
    if library is not None:
        library.fastdet_memory_give_back()
    _trim_heap()


def _trim_heap() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def counts() -> Counts | None:
    """What the cache holds; None if there is no cache."""
    library = _library()
    if library is None:
        return None
    numbers = (ctypes.c_int64 * len(Counts._fields))()
    library.fastdet_memory_counts(numbers)
    return Counts(*numbers)


def cache_state() -> str:
    """For `fastdet info`: "on", or why there is no cache."""
    return _loaded()[1]


def _library() -> Any:
    """The library of the cache, which is torch's allocator from now on; None if there is none."""
    return _loaded()[0]


@functools.cache
def _loaded() -> tuple[Any, str]:
    value = os.environ.get(VARIABLE, "on")
    if value not in ("on", "off"):
        raise ValueError(f"{VARIABLE}: expected on or off, got {value!r}")
    if value == "off":
        return None, f"off: {VARIABLE}"
    if not LIBRARY.exists():
        return None, f"off: {LIBRARY.name} is not built"
    installed = ".".join(torch.__version__.split(".")[:2])
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"off: {error}"
    library.fastdet_memory_torch.restype = ctypes.c_char_p
    library.fastdet_memory_install.restype = ctypes.c_bool
    built_with = library.fastdet_memory_torch().decode()
    if built_with != installed:
        return None, f"off: built with torch {built_with}, this is {torch.__version__}"
    if not library.fastdet_memory_install():
        return None, "off: another allocator took torch's place"
    _trim_heap()  # what it keeps for large blocks, such as weights that were converted
    return library, "on"


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
