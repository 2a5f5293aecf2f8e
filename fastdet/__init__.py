# SPDX-License-Identifier: BSD-3-Clause
"""Object detection on its own C++/CUDA kernels: operators, detectors, training, evaluation.

The names of `fastdet.ops` are here too, loaded at their first use, so that `import fastdet` and
torch-free parts of the package do not import torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'fastdet' has no attribute {name!r}")
    ops = importlib.import_module("fastdet.ops")
    if name in ops.__all__:
        return getattr(ops, name)
    try:
        return importlib.import_module(f"fastdet.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fastdet.{name}":
            raise
        raise AttributeError(f"module 'fastdet' has no attribute {name!r}") from None
