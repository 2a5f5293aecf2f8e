# SPDX-License-Identifier: BSD-3-Clause
"""How the tests marked `cuda` run the kernels, and look at work that must not wait for the host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch

from tests.cuda_emulation import emulated_kernels

Outputs = TypeVar("Outputs")

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

on_cuda_kernels = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param("cuda", marks=[pytest.mark.cuda, no_gpu]),
        pytest.param("emulated", marks=pytest.mark.emulation),
    ],
)


def gpu_only(test: Callable) -> Callable:
    """Marks a test that makes no sense under the emulator."""
    return pytest.mark.cuda(no_gpu(test))


@contextmanager
def cuda_kernels(kernels: str) -> Iterator[str]:
    """The device on which the CUDA kernels run: within, and if emulated, the CPU."""
    if kernels == "cuda":
        yield "cuda"
    else:
        with emulated_kernels():
            yield "cpu"


def captured(run: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """A CUDA graph of the run, and the tensors that a replay writes.

    What waits for the host, or allocates outside torch's allocator, fails in the capture. Before
    it the run is made thrice on a side stream, as torch asks.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


@contextmanager
def no_sync() -> Iterator[None]:
    """Within, torch raises where it would wait for the GPU.

    It does not see what our own kernels' host code waits for; a capture does.
    """
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
