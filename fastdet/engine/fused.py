# SPDX-License-Identifier: BSD-3-Clause
"""Networks as a CPU runs them fastest: 3x3 convolutions by Winograd's algorithm, the rest fused.

`run_fused(module, x)` is `module(x)`. In eval mode, without gradients, on the CPU it runs another
form of the module: norms are folded into convolutions, weights are laid out for oneDNN once, and a
convolution is written together with the sum and the activation that follow it; a sum is written
over a summand that nothing reads afterwards. Elsewhere, for example in training, the module itself
runs, and only its 3x3 convolutions in float32 are replaced (`winograd.py`). Graphs of torch.compile
and torch.export, other devices and other types than float32 and bfloat16 run the module as it is.

The form is made at a module's first call, from a trace by torch.fx, and compared with the module on
a corner of the input. A module that cannot be traced, or whose form gives other results, has no
form. The form keeps a second copy of the weights until `forget_fused`; the module and its state
dict stay as they are.
Each call compares the versions of the parameters, to see a change of the weights. torch's fused
optimizers do not change versions; so the steps of all optimizers are counted, too.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._pytree import tree_leaves

from fastdet.engine.fusing import fused_graph
from fastdet.engine.winograd import WinogradMode
from fastdet.ops.tracing import is_eager

CORNER = 128  # pixels
# Of a form's output from the module's, as a share of its norm: only rounding may differ.
LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}

Inputs = Tensor | Sequence[Tensor]


class Form(NamedTuple):
    """A module's second form.

    Attributes:
        graph: None: the module has no second form.
        state: of the module when this was made.
        parts: the objects that `state` names by id(), kept so that no new object gets such an id.
    """

    graph: nn.Module | None
    state: list[Any]
    parts: list[Any]


_forms: weakref.WeakKeyDictionary[nn.Module, dict[Any, Form]] = weakref.WeakKeyDictionary()
_making = threading.Lock()
_off = ContextVar("fastdet_fused_off", default=False)
_steps_of_optimizers = 0  # in this process


def _count_step(*_: Any) -> None:
    global _steps_of_optimizers
    _steps_of_optimizers += 1


register_optimizer_step_post_hook(_count_step)


def run_fused(module: nn.Module, inputs: Inputs) -> Any:
    """`module(inputs)`, by the module's second form where that gives the same result.

    Args:
        module: of a tensor or a list of them. Its weights may change in any way that changes their
            torch version; a write through `.data` is seen only after `forget_fused`.
        inputs: what the module takes.

    Under autocast all results have its type; a norm that autocast does not know would widen them.
    """
    x = inputs if isinstance(inputs, Tensor) else inputs[0]
    if x.device.type != "cpu" or not is_eager(x) or is_in_torch_dispatch_mode() or _off.get():
        return module(inputs)
    dtype = _dtype(x)
    looked = _look(module) if dtype is not None else None
    if dtype is not None and looked is not None:
        forms = _forms.setdefault(module, {})
        key = dtype, None if isinstance(inputs, Tensor) else len(inputs)
        form = forms.get(key)
        if form is None or form.state != looked[0]:
            with _making:
                form = forms[key] = Form(_make(module, inputs, dtype), *looked)
        if form.graph is not None:
            return form.graph(_prepared(inputs, dtype))
    with WinogradMode():
        return module(inputs)


def forget_fused(module: nn.Module) -> None:
    """Frees the second forms of a module and of all that is in it."""
    for part in module.modules():
        _forms.pop(part, None)


def has_form(module: nn.Module) -> bool:
    """Whether the module has run by a second form that is still kept."""
    return any(form.graph is not None for form in _forms.get(module, {}).values())


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Within it every module runs as it is: to compare, or to look for a fault."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def _dtype(x: Tensor) -> torch.dtype | None:
    """What the form computes in; None where the module itself must run."""
    mkldnn = torch.backends.mkldnn
    if torch.is_grad_enabled() or not (mkldnn.is_available() and mkldnn.enabled):
        return None
    autocast = torch.is_autocast_enabled("cpu") and x.is_floating_point()
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if x.dtype not in LARGEST_DIFFERENCE or dtype not in LARGEST_DIFFERENCE:
        return None
    supported = dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype if supported else None


def _look(module: nn.Module) -> tuple[list[Any], list[Any]] | None:
    """The module's state (which parts, which tensors, which version of each), and all of these.

    None for a module that trains or is watched by hooks.
    """
    every = nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        return None
    state: list[Any] = [_steps_of_optimizers]
    parts: list[Any] = []
    for part in module.modules():
        own = part.__dict__
        if part.training or own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
            return None
        state.append(id(part))
        if part is not module:  # that the form keeps it would keep both for ever
            parts.append(part)
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                if tensor.is_inference():
                    return None
                state.append((id(tensor), tensor.data_ptr(), tensor._version))
                parts.append(tensor)
    return state, parts


def _make(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> nn.Module | None:
    """The second form, if there is one that agrees with the module."""
    corner = _each(inputs, lambda x: x[(slice(2), slice(None), *[slice(CORNER)] * (x.dim() - 2))])
    try:
        graph = fused_graph(module, inputs, dtype)
        expected, found = _tensors(module(corner)), _tensors(graph(_prepared(corner, dtype)))
    except Exception:  # each module that cannot be traced raises an error of its own
        return None
    if [x.shape for x in found] != [x.shape for x in expected]:
        return None
    for x, own in zip(found, expected, strict=True):
        if not (x.float() - own.float()).norm() <= LARGEST_DIFFERENCE[dtype] * own.float().norm():
            return None
    return graph


def _prepared(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return _each(inputs, lambda x: x.to(dtype))


def _each(inputs: Inputs, change: Any) -> Inputs:
    return change(inputs) if isinstance(inputs, Tensor) else [change(x) for x in inputs]


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of nested lists, tuples and dicts, in order."""
    return [x for x in tree_leaves(output) if isinstance(x, Tensor)]
