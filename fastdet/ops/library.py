# SPDX-License-Identifier: BSD-3-Clause
"""Loads the operator libraries into torch. This happens once, at the import of `fastdet.ops`."""

from pathlib import Path
from typing import Any

import torch

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
        return f"{cuda_library.name} did not load: {error}"
    return ""


_why_no_cuda = _load()


def forbid_second_derivative(op: str) -> None:
    """Makes a second derivative, through the backward `op`, raise a clear error."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(f"{op}: no second derivative is implemented")

    torch.library.register_autograd(op, backward)


def info() -> dict[str, str]:
    """Versions, build and devices in use: the rows that `fastdet info` prints."""
    import fastdet
    from fastdet import _native

    usable = ", ".join(_native.usable_cpu_isas())
    cuda_ops = _why_no_cuda or "loaded"
    if not _why_no_cuda and not torch.cuda.is_available():
        cuda_ops = "loaded; torch sees no GPU"
    return {
        "fastdet": fastdet.__version__,
        "torch": torch.__version__,
        "CPU instruction set": f"{_native.cpu_isa()} (usable: {usable})",
        "compiler": _native.compiler,
        "CUDA architectures built": _native.cuda_archs or "none",
        "CUDA ops": cuda_ops,
    }
