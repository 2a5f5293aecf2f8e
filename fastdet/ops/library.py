# SPDX-License-Identifier: BSD-3-Clause
"""Loads the operator libraries into torch, once, when `fastdet.ops` is imported.

Registrations of gradients and devices that all operators share are here too.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent.parent


def _load() -> str:
    """Loads both libraries. Returns why there are no CUDA ops; an empty string if they loaded."""
    cpu_library = _FOLDER / "libfastdet.so"
    if not cpu_library.exists():
        raise ImportError(
            f"fastdet's op library is not built: expected {cpu_library}. "
            "Run `pip install -e .` in the source tree, or install a wheel."
        )
    torch.ops.load_library(cpu_library)
    cuda_library = _FOLDER / "libfastdet_cuda.so"
    if not cuda_library.exists():
        return "this build of fastdet has no CUDA kernels (no nvcc, or FASTDET_CUDA=off)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.ops.load_library(cuda_library)
    except OSError as error:
        return "; ".join([f"{cuda_library.name} did not load: {error}", *_another_cuda()])
    return ""


def _another_cuda() -> list[str]:
    """A line if the kernels were built with another major version of CUDA than torch."""
    from fastdet import _native

    ours, theirs = _native.cuda_version, torch.version.cuda
    if not ours or not theirs or ours.split(".")[0] == theirs.split(".")[0]:
        return []
    return [f"built with CUDA {ours}, but torch with CUDA {theirs}: the driver must be for both"]


_why_no_cuda = _load()


def register_fake(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`torch.library.register_fake`, with a check that all tensors of a call are on one device.

    Torch runs the fake kernel of a call in which any tensor is a meta tensor. If others are on the
    CPU, the results would be uninitialised memory there: such a call is refused.

    Args:
        op: the qualified name, such as "fastdet::nms". The kernel's parameters have the names of
            the schema's.
    """

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(fake).parameters)

        @functools.wraps(fake)
        def checked(*arguments: Any) -> Any:
            _expect_one_device(op, zip(names, arguments, strict=False))
            return fake(*arguments)

        torch.library.register_fake(op, checked)
        return fake

    return register


def _expect_one_device(op: str, arguments: Iterable[tuple[str, Any]]) -> None:
    """What `expect_same_device` of csrc/expect.h is for the kernels, in the same words."""
    first = None
    for name, tensor in _tensors(arguments):
        first = tensor.device if first is None else first
        if tensor.device != first:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise RuntimeError(
                f"{op}: {name}: expected the device of the first argument, {first}, "
                f"got {dtype} {tuple(tensor.shape)} on {tensor.device}"
            )


def _tensors(arguments: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among named arguments, those of lists too."""
    for name, argument in arguments:
        for item in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(item, Tensor):
                yield name, item


def forbid_second_derivative(op: str) -> None:
    """Makes a second derivative, through the backward `op`, raise a clear error."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(f"{op}: no second derivative is implemented")

    torch.library.register_autograd(op, backward)


# Private, but torch.library's own gradients use it. Without it calls are only slower.
_BelowAutograd = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)


def skip_autograd(*tensors: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which an operator with these inputs is called without its gradient, if it can.

    `torch.library.register_autograd` takes every call through Python, also one that needs no
    gradient: 3 to 4 us, as much as all the rest of a call on a few boxes.

    Args:
        tensors: all inputs through which a gradient could be wanted.

    Returns:
        A context that changes nothing if a gradient is wanted, and for what is traced, compiled or
        transformed, where the operator must be seen with its gradient.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return contextlib.nullcontext()
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.requires_grad:
            return contextlib.nullcontext()
    return _BelowAutograd()


def info() -> dict[str, str]:
    """Versions, build and devices in use: the rows that `fastdet info` prints."""
    import fastdet
    from fastdet import _native
    from fastdet.memory import cache_state

    usable = ", ".join(_native.usable_cpu_isas())
    cuda_ops = _why_no_cuda
    if not _why_no_cuda:
        no_gpu = [] if torch.cuda.is_available() else ["torch sees no GPU"]
        cuda_ops = "; ".join(["loaded", *no_gpu, *_another_cuda()])
    return {
        "fastdet": fastdet.__version__,
        "torch": torch.__version__,
        "CPU instruction set": f"{_native.cpu_isa()} (usable: {usable})",
        "CPU memory cache": cache_state(),
        "compiler": _native.compiler,
        "CUDA architectures built": _native.cuda_archs or "none",
        "CUDA ops": cuda_ops,
    }
