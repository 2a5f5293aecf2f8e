# SPDX-License-Identifier: BSD-3-Clause
"""Runs CUDA kernels in the tests marked `cuda`, and checks that work does not wait for the host."""

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
    """Marks a test that needs a GPU and cannot run on the emulator."""
    return pytest.mark.cuda(no_gpu(test))


@contextmanager
def cuda_kernels(kernels: str, launches: bool = True) -> Iterator[str]:
    """Gives the device on which the CUDA kernels run within the block: the CPU if emulated.

    Emulated ones must then be launched, unless `launches` is False.
    """
    if kernels == "cuda":
        yield "cuda"
    else:
        with emulated_kernels(launches=launches):
            yield "cpu"


def captured(run: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """A CUDA graph of the run, and the tensors that a replay writes.

    What waits for the host, or allocates outside torch's allocator, fails in the capture. Before
    it the run is made three times on a side stream, as torch requires.
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
    """Within the block torch raises an error where it would wait for the GPU.

    It does not see waits in our own kernels' host code; a graph capture does.
    """
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
