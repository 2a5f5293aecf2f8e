# SPDX-License-Identifier: BSD-3-Clause
"""The operators' tests also run their CUDA kernels on the CPU, by emulation."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cuda_emulation import emulated_kernels

MARKED = {
    ("test_opcheck", "test_compiles"): pytest.mark.registration,
    ("test_bad_", "test_empty"): pytest.mark.no_launch,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by how their names begin."""
    for item in items:
        for prefixes, mark in MARKED.items():
            if item.path.parent == Path(__file__).parent and item.name.startswith(prefixes):
                item.add_marker(mark)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.cuda),
        pytest.param("emulated", marks=pytest.mark.emulation),
    ]
)
def device(request) -> Iterator[str]:
    """cpu; cuda if torch sees a GPU; and cpu with emulated CUDA kernels, which a test must launch.

    Only tests with the mark `no_launch` need not.
    """
    if request.param == "emulated":
        with emulated_kernels(launches=not request.node.get_closest_marker("no_launch")):
            yield "cpu"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    yield request.param
