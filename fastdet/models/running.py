# SPDX-License-Identifier: BSD-3-Clause
"""How the networks of a detector run: its parts call `run`, and the detector chooses the runner.

A part (an RPN, the RoI heads) writes `run(self.head, x)` to call a network that takes much time. By
default that is `self.head(x)`. In the context of `networks_run_by` it is the runner that the
detector has chosen. So the parts do not depend on the engine. A head of RoIs is called by
`run_on_rois`, since a runner may have a way with less memory.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Runner = Callable[[nn.Module, Tensor | Sequence[Tensor], int | None], Any]
RoIRunner = Callable[[nn.Module, Sequence[Tensor], Tensor, Tensor, Sequence[Any]], Any]

_runner: ContextVar[Runner | None] = ContextVar("fastdet_runner", default=None)
_roi_runner: ContextVar[RoIRunner | None] = ContextVar("fastdet_roi_runner", default=None)


def run(
    network: nn.Module, inputs: Tensor | Sequence[Tensor], most_pixels: int | None = None
) -> Any:
    """`network(inputs)` for a tensor or a list of tensors, computed by the detector's runner.

    With `most_pixels`, the losses read the outputs at so many pixels of each image at most. This is
    no promise: gradients are right in any case.
    """
    runner = None if torch.compiler.is_compiling() else _runner.get()
    return network(inputs) if runner is None else runner(network, inputs, most_pixels)


def run_on_rois(
    head: nn.Module,
    levels: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor,
    pooling: Sequence[Any],
) -> Any:
    """What a head makes of the pooled maps of all RoIs, computed by the detector's runner.

    Args:
        head: pooled (B K, C, h, w) -> hidden.
        levels, boxes, counts: see `multiscale_roi_align`.
        pooling: its further arguments.

    Returns:
        None if the runner leaves this to the caller.
    """
    runner = None if torch.compiler.is_compiling() else _roi_runner.get()
    return None if runner is None else runner(head, levels, boxes, counts, pooling)


def networks_run_by(
    runner: Runner, roi_runner: RoIRunner | None = None
) -> contextlib.AbstractContextManager[None]:
    """In this context and thread `run` calls `runner(network, inputs, most_pixels)`.

    And `run_on_rois` calls `roi_runner` with its arguments. Under torch.compile and torch.export
    the network itself always runs.
    """
    # Dynamo cannot set a ContextVar.
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _set(runner, roi_runner)


@contextlib.contextmanager
def _set(runner: Runner, roi_runner: RoIRunner | None) -> Iterator[None]:
    token, roi_token = _runner.set(runner), _roi_runner.set(roi_runner)
    try:
        yield
    finally:
        _runner.reset(token)
        _roi_runner.reset(roi_token)
