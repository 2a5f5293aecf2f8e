# SPDX-License-Identifier: BSD-3-Clause
"""The operators' tests also run their CUDA kernels on the CPU, by emulation."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cuda_emulation import emulated_kernels

REGISTRATION = ("test_opcheck", "test_compiles")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what tests how torch knows an operator, by its name."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.name.startswith(REGISTRATION):
            item.add_marker(pytest.mark.registration)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.cuda),
        pytest.param("emulated", marks=pytest.mark.emulation),
    ]
)
def device(request) -> Iterator[str]:
    """cpu; cuda if torch sees a GPU; and cpu with emulated CUDA kernels, which the test launches.

    The mark `no_launch` is for a test of what is refused or empty.
    """
    if request.param == "emulated":
        with emulated_kernels(launches=not request.node.get_closest_marker("no_launch")):
            yield "cpu"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    yield request.param
