# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints on disk: written whole or not at all.

Lightning's own writer goes through a temporary folder that may lie on another file system, where
a rename is a copy and a kill leaves half a file; this one stays in the checkpoint's folder.
"""

import os
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from fastdet.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer with an atomic rename at its end."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Write `checkpoint` to `path`, which holds the old or the new one at every moment."""
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
