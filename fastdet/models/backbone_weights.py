# SPDX-License-Identifier: BSD-3-Clause
"""x."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoadedWeights:
    """x."""


def load_backbone_weights(body: Any, name: str, options: Any, path: Any) -> LoadedWeights:
    """x."""
    raise NotImplementedError
