# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of models share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def no_graph_of_another_test() -> Iterator[None]:
    """Compiles anew: of the same code torch makes a second graph for any shape, far more slowly."""
    yield
    torch._dynamo.reset()
