# SPDX-License-Identifier: BSD-3-Clause
"""Which of our operators run."""

from typing import Any

import pytest
import torch


def recorded_calls(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """A list that gets the name of each of these operators whenever it is called."""
    calls: list[str] = []
    for name in names:
        run = getattr(torch.ops.fastdet, name)

        def record(*args: Any, name: str = name, run: Any = run) -> Any:
            calls.append(name)
            return run(*args)

        monkeypatch.setattr(torch.ops.fastdet, name, record)
    return calls
