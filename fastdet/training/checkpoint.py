# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints on disk: written whole or not at all, and read without trust.

Lightning's own writer uses a temporary folder, which may be on another file system: there a rename
is a copy, and a kill leaves half a file. This one writes in the checkpoint's own folder. No
checkpoint holds a path: a folder of them can be copied or moved.
"""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from fastdet.files import replacing

_PLAIN_NAME = re.compile(r"[\w.]+")
_OF_THE_CLASSIFIER = {"num_classes", "global_pool"}  # arguments that change no feature map


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


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for a folder that may be copied or moved before a resume.

    Its state has file names in place of paths; each file is in the folder given here. Lightning
    forgets the best score if the folder has another path, and then replaces the best checkpoint.
    """

    @property
    def state_key(self) -> str:
        """That of ModelCheckpoint, under which older checkpoints have this state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def state_dict(self) -> dict[str, Any]:
        """The state, with file names in place of paths."""
        return {**_with_paths(super().state_dict(), lambda path: path.name), "dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, unless the best file it names is missing here."""
        assert self.dirpath is not None
        folder = Path(self.dirpath)
        state = _with_paths(state_dict, lambda path: str(folder / path.name))
        best = state["best_model_path"]
        if best and not Path(best).exists():
            warnings.warn(f"{best} is missing; the best score starts again", stacklevel=2)
            return
        super().load_state_dict({**state, "dirpath": self.dirpath})


def _with_paths(state: dict[str, Any], change: Callable[[Path], str]) -> dict[str, Any]:
    """A state of ModelCheckpoint with `change(path)` for each path of a file; "" is none."""
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    changed = {name: change(Path(state[name])) if state[name] else "" for name in names}
    best = {change(Path(path)): score for path, score in state["best_k_models"].items()}
    return {**state, **changed, "best_k_models": best}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours. Only tensors and plain data are unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, or a backbone that is not the plain name of a timm model: an
            address would make the network reach out for what it names. See `plain_backbone`.
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
    if not _PLAIN_NAME.fullmatch(str(known["backbone"])):
        raise ValueError(
            f"{path}: expected a backbone that is the plain name of a timm model, got "
            f"{known['backbone']!r}"
        )
    return content


def plain_backbone(backbone: str) -> str:
    """The timm name by which a checkpoint describes `backbone`, without the place it came from.

    Args:
        backbone: a timm name, or `local-dir:` and a folder with a timm model's config.json.

    Raises:
        ValueError: another address, or a folder that a timm name alone does not describe.
    """
    source, _, folder = backbone.partition(":")
    if not folder:
        return backbone
    if source.lower() != "local-dir":
        raise ValueError(
            f"backbone: expected a timm name or local-dir:FOLDER, got {backbone!r}; a checkpoint "
            "must not need the network"
        )
    try:
        config = json.loads((Path(folder) / "config.json").read_bytes())
        architecture, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"backbone: expected a folder with timm's config.json, got {folder!r} ({error!r})"
        ) from None
    if not _PLAIN_NAME.fullmatch(architecture):
        raise ValueError(f"{folder}/config.json: expected a timm name, got {architecture!r}")
    if arguments.get("in_chans") == 3:  # every detector's
        del arguments["in_chans"]
    if further := sorted(set(arguments) - _OF_THE_CLASSIFIER):
        raise ValueError(
            f"{folder}/config.json: expected a model that its name describes, got the arguments "
            f"{', '.join(further)} besides {architecture}"
        )
    return architecture
