# SPDX-License-Identifier: BSD-3-Clause
"""The processes of one training: one for each device, on one machine or on several.

`fastdet train --devices 2` starts the others itself, through Lightning; torchrun starts them all.
Only the first process writes to the folder of the training and prints.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def devices_and_nodes(devices: int | None) -> tuple[int, int]:
    """How many devices a machine uses, and how many machines.

    Args:
        devices: as the options say; None: as torchrun says, else one.

    Raises:
        ValueError: torchrun started another number of processes.
    """
    if not under_torchrun():
        return devices or 1, 1
    started = int(os.environ["LOCAL_WORLD_SIZE"])
    if devices not in (None, started):
        raise ValueError(f"devices: torchrun started {started} processes, got {devices}")
    return started, int(os.environ["WORLD_SIZE"]) // started


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def first_speaks() -> Iterator[None]:
    """In the block all processes but the first are silent: they would say the same again."""
    if is_first():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with redirect_stdout(nowhere):
            yield
