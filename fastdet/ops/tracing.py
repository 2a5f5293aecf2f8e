# SPDX-License-Identifier: BSD-3-Clause
"""Whether Python sees the values of tensors, so that a shape or a cache may depend on them."""

import torch
from torch import Tensor


def is_eager(tensor: Tensor) -> bool:
    """False while the tensor is compiled, exported, traced or fake."""
    if torch.compiler.is_compiling():
        return False
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not tracing and type(tensor) is Tensor
