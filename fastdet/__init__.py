# SPDX-License-Identifier: BSD-3-Clause
"""Object detection on its own C++/CUDA kernels: operators, detectors, training, evaluation.

The names of `fastdet.ops` are here too, and `override_torchvision`, loaded at their first use, so
that `import fastdet` and torch-free parts of the package, such as `fastdet.numpy`, do not import
torch.
"""

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'fastdet' has no attribute {name!r}")
    globals()[name] = found = _find(name)  # so that a name is looked for once and not at each use
    return found


def _find(name: str) -> Any:
    if importlib.util.find_spec(f"fastdet.{name}"):
        return importlib.import_module(f"fastdet.{name}")
    if name == "override_torchvision":
        return importlib.import_module("fastdet.override").override_torchvision
    ops = importlib.import_module("fastdet.ops")
    if name in ops.__all__:
        return getattr(ops, name)
    raise AttributeError(f"module 'fastdet' has no attribute {name!r}")
