# SPDX-License-Identifier: BSD-3-Clause
"""Memory of its own for weights."""

import pytest
import torch

from fastdet.memory import LEAST_BYTES, mapped_empty, trim_heap


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
    trim_heap()
    assert (view == 3).all()  # the view keeps the memory
