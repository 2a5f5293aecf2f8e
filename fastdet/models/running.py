# SPDX-License-Identifier: BSD-3-Clause
"""How the networks of a detector run: its parts call `run`, and the detector chooses the runner.

A part (an RPN, the RoI heads) writes `run(self.head, x)` to call a network that takes much time. By
default that is `self.head(x)`. In the context of `networks_run_by` it is the runner that the
detector has chosen. So the parts do not depend on the engine.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Runner = Callable[[nn.Module, Tensor | Sequence[Tensor], int | None], Any]

_runner: ContextVar[Runner | None] = ContextVar("fastdet_runner", default=None)


def run(
    network: nn.Module, inputs: Tensor | Sequence[Tensor], most_pixels: int | None = None
) -> Any:
    """`network(inputs)` for a tensor or a list of tensors, computed by the detector's runner.

    With `most_pixels`, the losses read the outputs at so many pixels of each image at most. This is
    no promise: gradients are right in any case.
    """
    runner = None if torch.compiler.is_compiling() else _runner.get()
    return network(inputs) if runner is None else runner(network, inputs, most_pixels)


def networks_run_by(runner: Runner) -> contextlib.AbstractContextManager[None]:
    """In this context and thread `run` calls `runner(network, inputs, most_pixels)`.

    Under torch.compile and torch.export the network itself always runs.
    """
    # Dynamo cannot set a ContextVar.
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _set(runner)


@contextlib.contextmanager
def _set(runner: Runner) -> Iterator[None]:
    token = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(token)
