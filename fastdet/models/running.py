# SPDX-License-Identifier: BSD-3-Clause
"""How the networks within a detector run: its parts call `run`, the detector says what that does.

A part (an RPN, the RoI heads) writes `run(self.head, x)` where a network that takes most of the
time is called. By itself that is `self.head(x)`. Within `networks_run_by` it is whatever the
detector has chosen, so that no part knows the engine.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Runner = Callable[[nn.Module, Tensor | Sequence[Tensor]], Any]

_runner: ContextVar[Runner | None] = ContextVar("fastdet_runner", default=None)


def run(network: nn.Module, inputs: Tensor | Sequence[Tensor]) -> Any:
    """`network(inputs)`, for a tensor or a list of tensors, by the detector's runner."""
    runner = None if torch.compiler.is_compiling() else _runner.get()
    return network(inputs) if runner is None else runner(network, inputs)


def networks_run_by(runner: Runner) -> contextlib.AbstractContextManager[None]:
    """Within it `run(network, inputs)` is `runner(network, inputs)`, in this thread.

    Graphs of torch.compile and torch.export always have the network itself.
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
