# SPDX-License-Identifier: BSD-3-Clause
"""Training on the CPU in less memory: what is quick to compute again is not saved for backward.

A norm saves its input, and the layer after it saves the norm's output: two maps for each
convolution. Here the output of a norm, and of a ReLU after it, is computed again in backward, in
one pass over the input. So are the filters into which a frozen norm was folded. Gradients differ
only by rounding: the second computation may round differently.

Backward writes maps again, but forward allocates fewer: what a layer frees, the next one takes.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastdet.engine.winograd import is_plain

_autograd: Any = torch._C._autograd  # type: ignore[attr-defined]


class _Recipe:
    """How a tensor is computed again.

    Args:
        tensor: the tensor. Only a weak reference is kept.
        make: computes it from the sources.
        sources: tensors; they must not change until then.
    """

    def __init__(self, tensor: Tensor, make: Callable[..., Tensor], sources: list[Tensor]) -> None:
        self.is_now(tensor)
        self.make = make
        self.sources = [source.detach() for source in sources]
        self.versions = [source._version for source in self.sources]
        self.readers = 0  # that saved it and did not read it yet
        self.made: Tensor | None = None

    def is_now(self, tensor: Tensor) -> None:
        """Sets the tensor whose present value this recipe makes."""
        self.tensor = weakref.ref(tensor)
        self.version = tensor._version

    def is_of(self, saved: Tensor) -> bool:
        """Whether `saved` has the value of this recipe."""
        tensor = self.tensor()
        return (
            tensor is not None
            and tensor._version == self.version
            and tensor.data_ptr() == saved.data_ptr()
            and tensor.shape == saved.shape
            and tensor.stride() == saved.stride()
        )

    def again(self) -> Tensor:
        """The tensor; the readers share one computation."""
        made = self.made
        if made is None:
            if [source._version for source in self.sources] != self.versions:
                raise RuntimeError("a tensor that backward needs was changed in place")
            with torch.no_grad():
                made = self.make(*self.sources)
        self.readers -= 1
        self.made = made if self.readers > 0 else None
        return made


class RecomputeMode(TorchFunctionMode):
    """In this context outputs of norms and folded filters are computed again in backward.

    In a context of other hooks for saved tensors, or where hooks are not allowed, nothing changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recipes: dict[int, _Recipe] = {}  # by address
        self.hooks: Any = None
        self.saved_now: _Recipe | None = None  # of the only tensor that the present call saves

    def __enter__(self) -> Any:
        allowed = _autograd._saved_tensors_hooks_is_enabled()
        if allowed and _autograd._top_saved_tensors_default_hooks(True) is None:
            self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
            self.hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.hooks is not None:
            self.hooks.__exit__(*error)
        self.recipes.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.hooks is not None:
            if func is F.batch_norm and _is_usual(*args, **kwargs):
                return self._norm(*args, **kwargs)
            if func is F.relu and is_plain(args[0]):
                return self._relu(args[0], **kwargs)
            if func is torch.mul and not kwargs and _scales_filters(*args):
                return self._kept(func(*args), torch.mul, list(args))
        return func(*args, **kwargs)

    def _norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        result, mean, scale = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, training, momentum, eps
        )
        if not training and running_mean is not None and running_var is not None:
            mean, scale = running_mean.clone(), (running_var + eps).rsqrt()
        return self._kept(result, _normalised, [x, mean, scale, weight, bias])

    def _relu(self, x: Tensor, inplace: bool = False) -> Tensor:
        recipe = self.recipes.get(x.data_ptr())
        if recipe is None or recipe.make is not _normalised or not recipe.is_of(x):
            return F.relu(x, inplace)
        # Before the call, which saves its result, and nothing else.
        self.saved_now = made = _Recipe(x, _rectified, recipe.sources)
        try:
            result = F.relu(x, inplace)
        finally:
            self.saved_now = None
        made.is_now(result)
        self.recipes[result.data_ptr()] = made
        return result

    def _kept(self, tensor: Tensor, make: Callable[..., Tensor], sources: list[Tensor]) -> Tensor:
        if tensor.requires_grad:
            self.recipes[tensor.data_ptr()] = _Recipe(tensor, make, sources)
        return tensor

    def _pack(self, saved: Tensor) -> Tensor | _Recipe:
        recipe = self.saved_now
        if recipe is None:
            recipe = self.recipes.get(saved.data_ptr()) if is_plain(saved) else None
            if recipe is None or not recipe.is_of(saved):
                return saved
        recipe.readers += 1
        return recipe


def _unpack(saved: Tensor | _Recipe) -> Tensor:
    return saved.again() if isinstance(saved, _Recipe) else saved


def _normalised(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    factor = scale * weight
    shift = bias - mean * factor
    return torch.addcmul(shift[:, None, None], x, factor[:, None, None])


def _rectified(*sources: Tensor) -> Tensor:
    return _normalised(*sources).relu_()


def _is_usual(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> bool:
    """Whether these are arguments of F.batch_norm for which `_norm` gives the same result."""
    statistics = running_mean, running_var
    return (
        all(is_plain(t) for t in (x, weight, bias))
        and (all(is_plain(t) for t in statistics) or (training and statistics == (None, None)))
        and x.dim() == 4
        and x.numel() > x.shape[1]  # one value has no variance: torch's function says so
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _scales_filters(filters: Any, scale: Any) -> bool:
    return (
        isinstance(filters, nn.Parameter)
        and is_plain(filters)
        and is_plain(scale)
        and not scale.requires_grad
    )
