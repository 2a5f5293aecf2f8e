# SPDX-License-Identifier: BSD-3-Clause
"""Whether tensors have values that Python code may read, to choose a shape or to fill a cache."""

import torch
from torch import Tensor


def is_eager(tensor: Tensor) -> bool:
    """False during torch.compile, export and tracing, and for fake tensors and subclasses."""
    if torch.compiler.is_compiling():
        return False
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not tracing and type(tensor) is Tensor
