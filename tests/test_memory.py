# SPDX-License-Identifier: BSD-3-Clause
"""Memory of its own for weights; and a process that keeps what it frees."""

import resource

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fastdet import memory
from fastdet.memory import LEAST_BYTES, empty_cache, keep_freed_memory, mapped_empty

BYTES = 5_000_000
PAGES = BYTES // resource.getpagesize()


class Faults(Dataset):
    """Pages that the kernel gives for a large block that is made 20 times."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[bool, int]:
        kept = keep_freed_memory()
        np.ones(BYTES, np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            np.ones(BYTES, np.uint8)
        return kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_that_is_freed_is_used_again() -> None:
    ((kept, faults),) = DataLoader(Faults(), batch_size=None, num_workers=1)
    if not kept:
        pytest.skip("a C library without mallopt")
    assert faults < PAGES  # of 20 times as many


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory.__wrapped__() is False


@pytest.mark.parametrize("size", [0, 1, LEAST_BYTES // 4 - 1, LEAST_BYTES // 4, 5 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mapped_tensor_is_an_ordinary_one(size: int, dtype: torch.dtype) -> None:
    tensor = mapped_empty((2, size), dtype)
    assert tensor.shape == (2, size)
    assert tensor.dtype == dtype
    assert not tensor.any()
    tensor.fill_(3)
    view = tensor[1]
    del tensor
    empty_cache()
    assert (view == 3).all()  # the view keeps the memory
