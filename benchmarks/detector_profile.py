# SPDX-License-Identifier: BSD-3-Clause
"""Where the time of an inference goes, and the memory of a training step, beside torchvision.

`python -m benchmarks.detector_profile` writes results/cpu_detectors.json: for both sides of
bench_from_torchvision.py the milliseconds of each operator in an inference as torch's profiler sees
it, and by how much the model and a few training steps raise the peak of resident memory, which
depends on what the C library gives back. Both are medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import machine
from benchmarks.bench_from_torchvision import MODELS, made, targets_for, training_step
from benchmarks.results import CPU_DETECTORS
from benchmarks.torchvision_detectors import let_candidates_pass
from fastdet.files import replacing
from fastdet.models import from_torchvision

SIDES = ("fastdet", "torchvision")
PRODUCTS = ("convolution", "winograd", "linear_pointwise", "::addmm", "::mm")  # in operators' names
LARGEST = 6
CALLS, PROCESSES = 9, 5


def of_side(side: str, network: Any) -> Any:
    """torchvision's model, or ours with its weights."""
    return from_torchvision(network) if side == "fastdet" else network


@torch.no_grad()
def inference(name: str, side: str) -> dict[str, Any]:
    """The share that is no convolution or matrix product, and the largest of the rest in ms."""
    network, images = made(name, 800, 1216)
    network.eval()
    let_candidates_pass(network, images[0])
    model = of_side(side, network)
    for _ in range(2):
        model(images[:1])
    calls: list[dict[str, float]] = []
    for _ in range(CALLS):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            model(images[:1])
        calls.append({e.key: 1e-3 * e.self_cpu_time_total for e in profiled.key_averages()})
    ms = {key: statistics.median(call.get(key, 0.0) for call in calls) for key in calls[0]}
    rest = {key: t for key, t in ms.items() if not any(part in key for part in PRODUCTS)}
    largest = sorted(rest, key=lambda key: -rest[key])[:LARGEST]
    return {
        "rest_share": round(sum(rest.values()) / sum(ms.values()), 4),
        "rest_ms": {key: round(rest[key], 2) for key in largest},
    }


def training_peak_mib(name: str, side: str) -> float:
    """With the model itself, in this process, which must be new."""
    before = machine.peak_memory_mib()
    network, images = made(name, 512, 512)
    model, targets = of_side(side, network), targets_for(images)
    del network
    for _ in range(3):
        training_step(model, images, targets)
    return machine.peak_memory_mib() - before


def training_peaks_mib(name: str) -> dict[str, int]:
    """Of each side in new processes, in turn."""
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(PROCESSES):
        for side in SIDES:
            command = [sys.executable, "-m", __spec__.name, "--memory-of", name, side]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks[side].append(float(done.stdout))
    return {side: round(statistics.median(peaks[side])) for side in SIDES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "SIDE"))
    options = parser.parse_args()
    if options.memory_of:
        print(training_peak_mib(*options.memory_of))
        return
    peaks = {name: training_peaks_mib(name) for name in MODELS}
    detectors = {
        name: {
            side: inference(name, side) | {"training_peak_mib": peaks[name][side]} for side in SIDES
        }
        for name in MODELS
    }
    with replacing(CPU_DETECTORS) as temporary:
        result = {"machine": machine.describe(), "detectors": detectors}
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
