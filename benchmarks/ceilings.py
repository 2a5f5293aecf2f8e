# SPDX-License-Identifier: BSD-3-Clause
"""The machine's peak bandwidth and arithmetic, from which the floor of an operator is computed."""

import ctypes
import mmap
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.alternate import Rounds, Side, alternate

ROUNDS = Rounds(seconds=2, least=20, most=100)
MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
MADVISE = getattr(ctypes.CDLL(None), "madvise", None) if MADV_HUGEPAGE else None
if MADVISE:
    MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def stream(reads: int = 0, writes: int = 0) -> Side:
    """Reads and writes so many bytes, the writes to new memory: the least that an operator does.

    New memory, because an operator's output is: the system's work for its first touch is included.
    Large outputs use huge pages, the fastest way to get new memory from the system.
    """
    source = torch.ones(reads // 4)

    def run() -> None:
        source.sum()
        new = torch.empty(writes // 4)
        _in_huge_pages(new)
        new.fill_(0.0)

    return run


def _in_huge_pages(tensor: Tensor) -> None:
    page, least = 2**21, 2**22  # below that the allocator has memory at hand
    if MADVISE and tensor.nbytes >= least:
        first = -(-tensor.data_ptr() // page) * page
        MADVISE(first, (tensor.data_ptr() + tensor.nbytes) // page * page - first, MADV_HUGEPAGE)


class Ceilings(NamedTuple):
    """10^9 a second of bytes read, written, and written to new memory, and of fused multiply-adds.

    Bytes are those of 64 MiB, which no cache near the core holds.
    """

    read: float
    write: float
    write_new: float
    fma: float


def measure(rounds: Rounds = ROUNDS) -> Ceilings:
    """The ceilings with torch's present number of threads, from the best of some rounds.

    The multiply-adds are a float32 convolution's, which oneDNN runs near the peak of any processor.
    """
    size = 2**26
    memory = torch.ones(size // 4)
    channels, side = 256, 56
    image = torch.rand(1, channels, side, side).to(memory_format=torch.channels_last)
    weight = torch.rand(channels, channels, 3, 3).to(memory_format=torch.channels_last)
    multiply_adds = 9 * channels**2 * (side - 2) ** 2
    work: dict[str, tuple[Side, int]] = {
        "read": (memory.sum, size),
        "write": (memory.zero_, size),
        "write_new": (stream(writes=size), size),
        "fma": (lambda: torch.nn.functional.conv2d(image, weight), multiply_adds),
    }
    sides = {name: side for name, (side, _) in work.items()}
    for run in sides.values():
        run()
    turns = alternate(sides, rounds)
    return Ceilings(**{n: 1e-9 * work[n][1] / min(t.per_call()) for n, t in turns.items()})
