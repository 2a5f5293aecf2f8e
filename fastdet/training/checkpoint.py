# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints on disk: written whole or not at all, and read without trust.

Lightning's own writer uses a temporary folder, which may be on another file system: there a rename
is a copy, and a kill leaves half a file. This one writes in the checkpoint's own folder.
"""

import os
import re
from pathlib import Path
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours. Only tensors and plain data are unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, or a backbone that is not the plain name of a timm model: an
            address would make the network reach out for what it names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    refusal = ValueError(f"{path}: not a checkpoint of fastdet")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # whatever torch says of a file that is no checkpoint
        raise refusal from None
    known = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(known, dict) or "state_dict" not in content:
        raise refusal
    if not {"model", "backbone", "classes", "category_ids"} <= set(known):
        raise refusal
    if not re.fullmatch(r"[\w.]+", str(known["backbone"])):
        raise ValueError(
            f"{path}: expected a backbone that is the plain name of a timm model, got "
            f"{known['backbone']!r}"
        )
    return content
