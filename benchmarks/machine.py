# SPDX-License-Identifier: BSD-3-Clause
"""Which machine and which software made a result file."""

import datetime
import gc
import platform
from pathlib import Path

import torch
import torchvision

import fastdet
from fastdet import _native
from fastdet.memory import empty_cache


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_mib() -> float:
    """This program's peak of resident memory; that of getrusage counts its parent's at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def new_peak_memory_mib() -> float:
    """Begins the peak of resident memory anew and returns it.

    Free memory of the heap goes back to the system first: what was freed before is no memory of
    what follows.
    """
    gc.collect()
    empty_cache()
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_mib()


def describe() -> dict[str, str]:
    """Label -> text, for the head of a result file."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": f"{processor()}, {torch.get_num_threads()} threads, {_native.cpu_isa()}",
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "fastdet": fastdet.__version__,
    }
