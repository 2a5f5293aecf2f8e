# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints on disk: written whole or not at all.

Lightning's own writer uses a temporary folder, which may be on another file system: there a rename
is a copy, and a kill leaves half a file. This one writes in the checkpoint's own folder.
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
        """Write `checkpoint` to `path`, which at every moment holds the whole old or new one."""
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
