# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures: the operators' tests also run their CUDA kernels on the CPU, by emulation."""

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
    """cpu; cuda if torch sees a GPU; and cpu with emulated CUDA kernels."""
    if request.param == "emulated":
        with emulated_kernels():
            yield "cpu"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    yield request.param
