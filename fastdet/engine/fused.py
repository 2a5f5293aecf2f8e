# SPDX-License-Identifier: BSD-3-Clause
"""Runs a network in a fused form that is faster on the CPU; 3x3 convolutions use Winograd.

`run_fused(module, x)` equals `module(x)`, up to rounding. On the CPU, in eval mode and without
gradients, it runs a second, fused form of the module. There norms are folded into convolutions, and
the sum and the activation that follow a convolution are computed together with it. A sum overwrites
its summand if nothing reads the summand afterwards. Large maps go through the first layers in bands
(`bands.py`). The weights of linear layers are converted to oneDNN's layout once.

In other cases on the CPU, for example in training, the module's own parts run, but frozen norms are
folded (`folding.py`), and 3x3 convolutions and max pooling are replaced (`winograd.py`), on one
thread 1x1 convolutions, too, where torch's are slow (`pointwise.py`). In float32 outputs of norms
are computed again in backward (`recomputing.py`). The gradient of an RPN's head is computed at few
pixels (`sampled_head.py`), that of pooled RoIs for some RoIs at a time (`pooled_head.py`). Under
torch.compile and torch.export, on other devices and in other types than float32 and bfloat16, the
module runs unchanged.

The form is built at the first call of a module, from a torch.fx trace. It is compared with the
module on a corner of the input. There is no form for a module that cannot be traced or whose form
gives different results. In float32, convolutions read the module's own weights; small ones are
copied (`filters.py`). Of linear layers, and in bfloat16 of all layers, the form keeps a second copy
of the weights until `forget_fused` is called. The module and its state dict do not change.

Each call compares the versions of the parameters, to detect changed weights. torch's fused
optimizers do not change the versions; therefore the steps of all optimizers are counted, too.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._pytree import tree_leaves
from typing_extensions import Self

from fastdet.engine.bands import divide_into_bands
from fastdet.engine.folding import folded_graph
from fastdet.engine.fusing import fused_graph
from fastdet.engine.linear import LinearMode, products_are_slow
from fastdet.engine.pointwise import PointwiseMode
from fastdet.engine.pooled_head import pooled_head, run_pooled_head
from fastdet.engine.recomputing import RecomputeMode
from fastdet.engine.sampled_head import run_sampled, sampled_head
from fastdet.engine.upsampling import convolve_before_upsampling
from fastdet.engine.winograd import WinogradMode
from fastdet.memory import empty_cache
from fastdet.ops.tracing import is_eager

CORNER = 128  # pixels
# Allowed norm of the difference between the outputs, relative to the norm of the module's output.
# Only rounding may differ.
LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}

Inputs = Tensor | Sequence[Tensor]


class Form(NamedTuple):
    """The fused form of a module.

    Attributes:
        graph: the fused module; None if the module has no fused form.
        state: the state of the module when the form was built.
        parts: the objects whose id() is in `state`. They are kept so that no new object can get
            the same id.
    """

    graph: nn.Module | None
    state: list[Any]
    parts: list[Any]


class ReadyNetwork(nn.Module):
    """A network that `run_fused` calls as it is, because it is fused already. It cannot train."""

    def train(self, mode: bool = True) -> Self:
        """Only eval mode.

        Raises:
            ValueError: training mode.
        """
        if mode:
            raise ValueError(
                "a quantised detector cannot be trained: train the detector that it was made of, "
                "and quantise that again"
            )
        return super().train(mode)


def refuse_training(model: nn.Module) -> None:
    """Raises ValueError if a network of the model cannot train; nothing is changed."""
    for part in model.modules():
        if isinstance(part, ReadyNetwork):
            part.train()


_forms: weakref.WeakKeyDictionary[nn.Module, dict[Any, Form]] = weakref.WeakKeyDictionary()
_folded_forms: weakref.WeakKeyDictionary[nn.Module, dict[Any, Form]] = weakref.WeakKeyDictionary()
_making = threading.Lock()
_off = ContextVar("fastdet_fused_off", default=False)
_watch: ContextVar[Callable[[nn.Module, Inputs], Any] | None]
_watch = ContextVar("fastdet_fused_watch", default=None)
_steps_of_optimizers = 0  # in this process


def _count_step(*_: Any) -> None:
    global _steps_of_optimizers
    _steps_of_optimizers += 1


register_optimizer_step_post_hook(_count_step)


def run_fused(module: nn.Module, inputs: Inputs, most_pixels: int | None = None) -> Any:
    """`module(inputs)`, computed by the module's fused form if that gives the same result.

    Args:
        module: takes a tensor or a list of tensors. A change of its weights is detected if it
            changes their torch version. A write through `.data` does not: call `forget_fused`.
        inputs: the tensor or the list of tensors.
        most_pixels: see `fastdet.models.running.run`.

    Under autocast all results have the autocast dtype. In the module itself, a norm that autocast
    does not know can return a wider type.
    """
    x = inputs if isinstance(inputs, Tensor) else inputs[0]
    watch = _watch.get()
    if watch is not None:
        return watch(module, inputs)
    if x.device.type != "cpu" or not is_eager(x) or is_in_torch_dispatch_mode() or _off.get():
        return module(inputs)
    if isinstance(module, ReadyNetwork):
        return module(inputs)
    dtype = _dtype(x)
    looked = None
    if dtype is not None:
        # LinearMode would see each method of each parameter.
        with torch._C.DisableTorchFunction():
            looked = _look(module)
    if dtype is not None and looked is not None:
        forms = _forms.setdefault(module, {})
        key = dtype, None if isinstance(inputs, Tensor) else len(inputs)
        form = forms.get(key)
        if form is None or form.state != looked[0]:
            with _making:
                form = forms.get(key)  # another thread may have made it in the meantime
                if form is None or form.state != looked[0]:
                    form = forms[key] = Form(_make(module, inputs, dtype), *looked)
                    empty_cache()
        if form.graph is not None:
            return form.graph(_prepared(inputs, dtype))
    with _saving_less(x), _pointwise(), WinogradMode():
        if most_pixels is not None and _modes(module) is not None:  # no hooks
            head = sampled_head(module, inputs, most_pixels)
            if head is not None:
                return run_sampled(head, inputs, module)
        return (_folded(module, inputs) or module)(inputs)


def run_pooled(
    head: nn.Module,
    levels: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor,
    pooling: Sequence[Any],
) -> Tensor | None:
    """`head` of pooled RoIs in training, in less memory; None if it does not fit.

    The arguments are those of `fastdet.models.running.run_on_rois`.
    """
    if _watch.get() is not None or _off.get() or is_in_torch_dispatch_mode():
        return None
    layers = pooled_head(head, levels)
    if layers is None or _modes(head) is None:  # hooks
        return None
    return run_pooled_head(layers, levels, boxes, counts, pooling)


def computes_images_apart(model: nn.Module, images: Tensor) -> bool:
    """Whether nothing but time and memory depends on which images a call of the model takes.

    That is so on the CPU, in eval mode and without gradients, unless something watches the model:
    a hook, a mode of torch, or `watched_by`.
    """
    if images.device.type != "cpu" or not is_eager(images) or torch.is_grad_enabled():
        return False
    return not (
        _off.get()
        or _watch.get() is not None
        or is_in_torch_dispatch_mode()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or _has_hooks_on_all()
        or any(part.training or _is_hooked(part) for part in model.modules())
    )


def fast_linear(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context for networks that get `x`, in which linear layers are fast: see `linear.py`.

    `run_fused` is for networks that can be traced. This is for all others, in training, too.
    """
    if x.device.type != "cpu" or not is_eager(x) or _off.get() or not products_are_slow():
        return contextlib.nullcontext()
    return LinearMode()


def _pointwise() -> contextlib.AbstractContextManager[Any]:
    if torch.get_num_threads() > 1 or not torch.is_grad_enabled() or not products_are_slow():
        return contextlib.nullcontext()
    return PointwiseMode()


def _saving_less(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    trains = torch.is_grad_enabled() and x.dtype == torch.float32
    if (
        not trains
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
    ):
        return contextlib.nullcontext()
    return RecomputeMode()


def forget_fused(module: nn.Module) -> None:
    """Frees the fused forms of a module and of all its submodules."""
    for part in module.modules():
        _forms.pop(part, None)


def has_form(module: nn.Module) -> bool:
    """Whether a fused form of the module is kept."""
    return any(form.graph is not None for form in _forms.get(module, {}).values())


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """In this context every module runs unchanged, to compare results or to find an error."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


@contextlib.contextmanager
def watched_by(watch: Callable[[nn.Module, Inputs], Any]) -> Iterator[None]:
    """In this context `run_fused(module, inputs)` is `watch(module, inputs)`."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def _dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which the form computes; None if the module itself must run."""
    mkldnn = torch.backends.mkldnn
    if torch.is_grad_enabled() or not (mkldnn.is_available() and mkldnn.enabled):
        return None
    autocast = torch.is_autocast_enabled("cpu") and x.is_floating_point()
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if x.dtype not in LARGEST_DIFFERENCE or dtype not in LARGEST_DIFFERENCE:
        return None
    return dtype if dtype != torch.bfloat16 or has_fast_bfloat16() else None


def has_fast_bfloat16() -> bool:
    """Whether torch computes bfloat16 on this CPU faster than float32, or about as fast."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _look(module: nn.Module) -> tuple[list[Any], list[Any]] | None:
    """The module's state (ids of submodules and tensors, versions of tensors), and these objects.

    None for a module that is in training mode or has forward hooks.
    """
    if _has_hooks_on_all():
        return None
    state: list[Any] = [_steps_of_optimizers]
    parts: list[Any] = []
    for part in module.modules():
        own = part.__dict__
        if part.training or _is_hooked(part):
            return None
        state.append(id(part))
        if part is not module:  # a form that refers to its module would never be freed
            parts.append(part)
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                if tensor.is_inference():
                    return None
                state.append((id(tensor), tensor.data_ptr(), tensor._version))
                parts.append(tensor)
    return state, parts


def _folded(module: nn.Module, inputs: Inputs) -> nn.Module | None:
    """The module's form for training, if it has one and it can be used in this call."""
    x = inputs if isinstance(inputs, Tensor) else inputs[0]
    state = _modes(module)
    if state is None or x.dtype != torch.float32:
        return None
    key = None if isinstance(inputs, Tensor) else len(inputs)
    kept = _folded_forms.setdefault(module, {})
    form = kept.get(key)
    if form is None or form.state != state[0]:
        with _making:
            form = kept[key] = Form(folded_graph(module, inputs), *state)
    return form.graph


def _modes(module: nn.Module) -> tuple[list[Any], list[Any]] | None:
    """Which submodules there are, with their modes; None if one has a forward hook."""
    if _has_hooks_on_all():
        return None
    state: list[Any] = []
    parts = [part for part in module.modules() if part is not module]
    for part in (module, *parts):
        if _is_hooked(part):
            return None
        state.append((id(part), part.training))
    return state, parts


def _has_hooks_on_all() -> bool:
    every = nn.modules.module
    return bool(every._global_forward_hooks or every._global_forward_pre_hooks)


def _is_hooked(part: nn.Module) -> bool:
    own = part.__dict__
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def _make(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> nn.Module | None:
    """The fused form, or None if it cannot be built or gives different results."""
    corner = _each(inputs, lambda x: x[(slice(2), slice(None), *[slice(CORNER)] * (x.dim() - 2))])
    try:
        graph = fused_graph(module, inputs, dtype)
        divide_into_bands(graph)
        convolve_before_upsampling(graph)
        expected, found = _tensors(module(corner)), _tensors(graph(_prepared(corner, dtype)))
    except Exception:  # modules that cannot be traced raise errors of any type
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
