# SPDX-License-Identifier: BSD-3-Clause
"""The operators' tests run over their CUDA kernels too, on the CPU."""

from collections.abc import Iterator

import pytest
import torch

from tests.cuda_emulation import emulated_kernels


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.cuda),
        pytest.param("emulated", marks=pytest.mark.emulation),
    ]
)
def device(request) -> Iterator[str]:
    """cpu, cuda where torch sees a GPU, and cpu with the CUDA kernels beneath it."""
    if request.param == "emulated":
        with emulated_kernels():
            yield "cpu"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    yield request.param
