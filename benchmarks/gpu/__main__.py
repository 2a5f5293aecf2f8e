# SPDX-License-Identifier: BSD-3-Clause
"""Measures on a GPU and writes benchmarks/results/cuda_<gpu>.json; see gpu.sh beside this folder.

    python -m benchmarks.gpu [--out FOLDER] [--only TEXT] [--quick] [--device cpu]

The file is written after each row, so that a run that is ended keeps what it measured. A suite that
fails is reported, the others are measured, and the process exits with 1. A suite beside a package
that is not installed is skipped.
"""

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import machine, results
from benchmarks.gpu import (
    assignment,
    attention,
    deform_conv,
    dense_assignment,
    detectors,
    masks,
    merging,
    ops,
)
from benchmarks.gpu.case import GpuCase, measure
from benchmarks.gpu.device import Device
from benchmarks.tables import times
from fastdet.report.figures import three_digits

PEERS = ("pycocotools", "scipy")  # that a machine may lack

# The promised figures first: those after them may miss the end of the time.
SUITES: tuple[Callable[[Device], Iterator[GpuCase]], ...] = (
    *ops.SUITES,
    detectors.detectors,
    *attention.SUITES,
    *deform_conv.SUITES,
    *masks.SUITES,
    *merging.SUITES,
    *assignment.SUITES,
    *dense_assignment.SUITES,
)


def file_name(device: Device) -> str:
    """cuda_nvidia_h100_80gb_hbm3.json: the GPU's own name."""
    name = torch.cuda.get_device_name() if device.gpu else "none"
    return results.CUDA.format(re.sub("[^a-z0-9]+", "_", name.lower()).strip("_"))


def line(row: results.Row) -> str:
    """A row as it comes in."""
    sides = []
    for name, side in row.sides.items():
        work = side.gpu
        counts = f" ({work.launches:g} launches, {work.syncs:g} syncs)" if work else ""
        beside = "" if name == "fastdet" else f" = {times(side.ratio[1])}"
        sides.append(f"{name} {three_digits(side.ms)} ms{beside}{counts}")
    return f"{row.op}, {row.workload}: {', '.join(sides)}"


def run(device: Device, only: str, out: Path | None) -> int:
    """Measures, prints and writes row by row; how many suites ended early."""
    bandwidth = device.bandwidth()
    print(", ".join(f"{name} {value:,.0f} GB/s" for name, value in bandwidth.items()), flush=True)
    result = results.Result(machine.describe(), {device.name: bandwidth})
    failed = 0
    for suite in SUITES:
        if only not in suite.__name__:
            continue
        try:
            for case in suite(device):
                result.rows.append(measure(case, device, max(bandwidth.values())))
                print(line(result.rows[-1]), flush=True)
                if out:
                    results.write(out / file_name(device), result)
        except Exception as error:
            lacking = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
            package = lacking.split(".")[0]
            if package in PEERS:
                print(f"{suite.__name__} skipped: {package} is not installed", flush=True)
                continue
            failed += 1
            print(f"{suite.__name__} failed:\n{traceback.format_exc()}", flush=True)
    return failed


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="folder of the result file")
    parser.add_argument("--only", default="", help="suites whose name contains this")
    parser.add_argument("--quick", action="store_true", help="each case once, tiny")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    device = Device(options.device, options.quick or options.device == "cpu")
    if device.gpu and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: nothing to measure (--device cpu tries the suites, tiny)")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    if failed := run(device, options.only, options.out):
        sys.exit(f"{failed} suites failed")


if __name__ == "__main__":
    main()
