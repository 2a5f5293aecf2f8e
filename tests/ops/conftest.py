# SPDX-License-Identifier: BSD-3-Clause
"""The operators' tests also run their CUDA kernels on the CPU, by emulation."""

import re
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from fastdet import _native
from tests.cuda_emulation import emulated_kernels, launching

MARKED = {
    re.compile("test_(opcheck|compiles)"): pytest.mark.registration,
    # What is refused, and samples without an element.
    re.compile(
        r"test_(bad_|empty|mean_of_no_rows)|.*[-\[](empty|neither|batch of none|no [a-z])"
    ): pytest.mark.no_launch,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their names."""
    for item in items:
        for names, mark in MARKED.items():
            if item.path.parent == Path(__file__).parent and names.match(item.name):
                item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test of emulated kernels launches some, but for those marked `no_launch`."""
    params = pyfuncitem.callspec.params if hasattr(pyfuncitem, "callspec") else {}
    must = params.get("device") == "emulated" and not pyfuncitem.get_closest_marker("no_launch")
    with launching() if must else nullcontext():
        return (yield)


@pytest.fixture
def instruction_set(isa: str) -> Iterator[None]:
    """The kernels run on the instruction set that the test's parameter `isa` names."""
    before = _native.cpu_isa()
    _native.set_cpu_isa(isa)
    yield
    _native.set_cpu_isa(before)


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
        with emulated_kernels(launches=False):  # but see pytest_pyfunc_call
            yield "cpu"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    yield request.param
