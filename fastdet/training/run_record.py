# SPDX-License-Identifier: BSD-3-Clause
"""run.yaml: what a training ran on, and what it took.

Beside options.yaml it says what is needed to compare runs and to make one again: versions, machine,
the state of the user's git repository, a fingerprint of the data. After each validation it gets the
epochs, the seconds and the memory so far. A resumed training adds a session.
"""

import hashlib
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

from fastdet import __version__
from fastdet.data import DetectionDataset
from fastdet.files import replacing

PACKAGES = ("torch", "torchvision", "lightning", "timm", "numpy")


class RunRecord(lightning.Callback):
    """Keeps run.yaml.

    Args:
        path: the file; a resumed training goes on in it.
        resumed: whether the training is one.
        about: further entries, such as the data.
    """

    def __init__(self, path: Path, resumed: bool, about: dict[str, Any]) -> None:
        self.path = path
        before = read_record(path) if resumed and path.is_file() else {}
        self.sessions: list[dict[str, Any]] = before.get("sessions", [])
        self.content = before | about
        self.session: dict[str, Any] = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            **environment(),
            "git": git_state(Path.cwd()),
            "epochs": 0,
            "seconds": 0.0,
        }

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write the file, and start the clock."""
        self.started, self.first_epoch = time.monotonic(), trainer.current_epoch
        self._write(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write how far the training is."""
        if trainer.training or trainer.state.fn == "fit":
            self.session["epochs"] = trainer.current_epoch + 1 - self.first_epoch
            self._write(trainer)

    def _write(self, trainer: lightning.Trainer) -> None:
        self.session["seconds"] = round(time.monotonic() - self.started, 2)
        self.session["memory_mib"] = peak_memory(trainer.strategy.root_device)
        if not trainer.is_global_zero:
            return
        content = {**self.content, "sessions": [*self.sessions, self.session]}
        with replacing(self.path) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """The content of a run.yaml.

    Raises:
        ValueError: it is none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from None
    if not _has_sessions(content):
        raise ValueError(f"{path}: expected the record of a training, got something else")
    return content


def _has_sessions(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("sessions"), list):
        return False
    data = content.get("data", {})
    parts = [*content["sessions"], data, *(data.values() if isinstance(data, dict) else ())]
    return all(isinstance(part, dict) for part in parts)


def is_record(path: Path) -> bool:
    """Whether the file is the record of a training."""
    try:
        return bool(read_record(path))
    except ValueError:
        return False


def peak_memory(device: torch.device) -> int:
    """MiB: of a GPU what torch has reserved, else the peak of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def environment() -> dict[str, Any]:
    """Versions, processor and GPU."""
    versions = {"fastdet": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = metadata.version(package)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    machine = {"processor": _processor(), "cores": os.cpu_count(), "threads": threads, "gpu": gpu}
    return {"versions": versions, "machine": machine}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository that `folder` is in, and whether files differ from it."""
    try:
        commit, status = (
            subprocess.run(
                ["git", *command], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": bool(status)}


def describe_data(dataset: DetectionDataset) -> dict[str, Any]:
    """A split for the record: its size and a fingerprint.

    Of the pictures the fingerprint takes names and sizes, of the annotations all that is learned.
    """
    annotations = dataset.annotations
    digest = hashlib.sha256("\0".join([*annotations.names, *annotations.file_names]).encode())
    for column in (
        annotations.image_sizes,
        annotations.image_index,
        annotations.labels,
        annotations.boxes_xywh,
        annotations.crowd,
    ):
        digest.update(column.tobytes())
    return {
        "pictures": len(dataset),
        "boxes": dataset.num_objects,
        "classes": dataset.classes[1:],
        "fingerprint": digest.hexdigest()[:16],
    }
