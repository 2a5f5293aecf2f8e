# SPDX-License-Identifier: BSD-3-Clause
"""The time that each CUDA kernel takes at least on an H100, without a GPU: `make cuda-roofline`.

Runs the inputs of benchmarks/gpu on the emulator that counts (tests/cuda_emulation/counting.py),
joins the counts with the compiled instructions (sass.py), and writes what bounds each kernel. The
instructions are of the library as built, for sm_90; without it their columns are empty.

    python -m tools.cuda_roofline [--only TEXT] [--out FILE] [--peers]

A second table has torchvision's bytes beside ours (cuda_peers.py); `--peers` renews it alone. With
`--only`, the rows of other operators that FILE has already stay as they are.

An input that takes the emulator too long is cut to a part; the counts are multiplied accordingly.
"""

import argparse
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.case import GpuCase
from benchmarks.gpu.device import Device
from tests.cuda_emulation.counting import MEMSET, Counts, Kernel, Site, counted
from tools import cuda_peers, sass
from tools.cuda_resources import LIBRARY, ROOT, kernel_name

OUT = ROOT / "benchmarks" / "results" / "cuda_roofline.md"

# An H100 SXM5, from NVIDIA's "H100 Tensor Core GPU Architecture": multiprocessors, 10^9 cycles a
# second (66.9 TFLOPS of FP32 are 132 x 128 x 2 at this clock), bytes a second of memory, and of one
# multiprocessor in a cycle: instructions of warps (four schedulers), of them in float64 (64 units),
# and requests of 128 bytes (32 load-store units of 4 bytes). The bandwidth of its L2 cache is not
# published; an A100's is taken, 5,120 bytes in a cycle ("A100 Tensor Core GPU Architecture").
MULTIPROCESSORS = 132
CYCLES = 1.98e9
MEMORY = 3.35e12
L2 = 5120 * CYCLES
ISSUED, ISSUED_FP64 = 4, 2

ARCH = "sm_90"


class Cut(NamedTuple):
    """Of some inputs a part is run: the first 1 / `factor` of a dimension.

    Attributes:
        factor: how many times fewer; less where the dimension is shorter.
        dims: the dimension by the input's position.
    """

    factor: int
    dims: Mapping[int, int]


IMAGES = Cut(8, {0: 0, 1: 0, 3: 0, 4: 0, 5: 0})
CUTS = {
    "multiscale_roi_align": Cut(16, {-1: 0}),
    "roi_align": Cut(16, {1: 0}),
    "match_anchors": Cut(8, {0: 0}),
    "box_iou": Cut(16, {1: 0}),
    "generalized_box_iou": Cut(16, {1: 0}),
    "complete_box_iou": Cut(16, {1: 0}),
    "generalized_box_iou_loss": Cut(4, {0: 0, 1: 0}),
    "sigmoid_focal_loss": Cut(32, {0: 0, 1: 0, 2: 0}),
    "ms_deform_attn": Cut(16, {1: 1, 2: 1}),
    "deform_conv2d": Cut(10, {0: 2, 1: 2, 4: 2}),
    "paste_masks": Cut(25, {0: 0, 1: 0}),
    "paste_masks_rle": Cut(25, {0: 0, 1: 0}),
    "encode_masks": Cut(25, {0: 0}),
    "linear_assignment": Cut(16, {0: 0}),
    "match_queries": Cut(6, {0: 0, 1: 0}),
    "assign_task_aligned": Cut(16, {0: 0, 1: 0, 3: 0, 4: 0, 5: 0}),
    "assign_atss": Cut(8, {1: 0, 2: 0}),
    "assign_simota": Cut(8, {0: 0, 1: 0, 4: 0, 5: 0, 6: 0}),
}

# Their backward writes the gradient of an input that is not cut.
WHOLE_BACKWARD = ("multiscale_roi_align", "ms_deform_attn")

# Takes the emulator longer than the rest together, or is a network.
LEFT_OUT = ("retinanet_detections", "detectors")


class Row(NamedTuple):
    """A kernel on a case's inputs; times in microseconds."""

    op: str
    workload: str
    kernel: str
    launches: float
    memory_bytes: float
    l2_bytes: float
    sectors: float | None
    banks: float | None
    bounds: dict[str, float]

    @property
    def bound(self) -> str:
        """The name of the largest bound."""
        return max(self.bounds, key=self.bounds.__getitem__)


def shortened(case: GpuCase) -> tuple[tuple[Tensor, ...], int, set[int]]:
    """The case's inputs, how many times they are cut, and which of them."""
    cut = CUTS.get(case.op)
    if cut is None or (case.op in WHOLE_BACKWARD and "backward" in case.workload):
        return case.inputs, 1, set()
    inputs, factor = list(case.inputs), cut.factor
    dims = {i % len(inputs): dim for i, dim in cut.dims.items()}
    size = min(inputs[i].size(dim) for i, dim in dims.items())
    length = max(1, size // factor)
    for i, dim in dims.items():
        part = inputs[i].narrow(dim, 0, inputs[i].size(dim) * length // size)
        inputs[i] = part.clone(memory_format=torch.preserve_format)
    return tuple(inputs), size // length, set(dims)


def tensors_of(found: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        for part in found:
            yield from tensors_of(part)


def count(case: GpuCase) -> tuple[Counts, int]:
    """What fastdet's kernels do, and how many times more they would with the whole inputs."""
    inputs, scale, cut = shortened(case)
    side = case.sides["fastdet"](*inputs)
    with counted(
        [t for i, t in enumerate(inputs) if i not in cut], scale, [inputs[i] for i in cut]
    ) as counts:
        counts.outputs.extend(tensors_of(side()))
    return counts, scale


class Compiled:
    """The kernels of the library by name."""

    def __init__(self, library: Path) -> None:
        self._code = sass.functions(library, ARCH) if library.exists() else {}
        symbols = list(self._code)
        names = subprocess.run(
            ["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True
        ).stdout.splitlines()
        self._symbols = {}
        for symbol, name in zip(symbols, names, strict=True):
            self._symbols[kernel_name(symbol, name)] = symbol

    def least(self, kernel: Kernel, sites: Sequence[Site]) -> sass.Least | None:
        """The instructions of the kernel's launches, at least; None if it is not found."""
        without_family = kernel.name.partition(": ")[2]
        symbol = self._symbols.get(kernel.name) or self._symbols.get(without_family)
        if symbol is None:
            return None
        done: dict[str, float] = {"talk": kernel.talks}
        for site in sites:
            kind = f"{site.space} {site.kind}"
            amount = site.requests * (1 if site.kind == "atomic" else site.bytes)
            done[kind] = done.get(kind, 0) + amount
        return sass.least(sass.blocks(self._code[symbol]), kernel.warps, done)


def efficiency(sites: Sequence[Site], space: str) -> float | None:
    """Ideal by touched sectors, or passes through banks; None without requests."""
    touched = sum(site.sectors for site in sites if site.space == space)
    return sum(s.ideal for s in sites if s.space == space) / touched if touched else None


def row(case: GpuCase, counts: Counts, scale: int, kernel: Kernel, compiled: Compiled) -> Row:
    """What bounds a kernel."""
    sites = [site for site in counts.sites if site.kernel == kernel.name]
    blocks = scale * kernel.blocks / kernel.launches
    cycles = CYCLES * min(MULTIPROCESSORS, max(1, blocks))  # of all that have a block, in a second
    memory_bytes = kernel.read + scale * kernel.written
    l2_bytes = max(scale * kernel.l2_bytes, memory_bytes)  # what comes from memory passes the L2
    bounds = {
        "memory": memory_bytes / MEMORY,
        "L2": l2_bytes / L2,
        "LSU": scale * sum(site.cycles for site in sites) / cycles,
    }
    if kernel.name != MEMSET and (least := compiled.least(kernel, sites)):
        bounds["issue"] = scale * least.instructions / ISSUED / cycles
        bounds["FP64"] = scale * least.fp64 / ISSUED_FP64 / cycles
    return Row(
        case.op,
        case.workload,
        kernel.name,
        kernel.launches,
        memory_bytes,
        l2_bytes,
        efficiency(sites, "global"),
        efficiency(sites, "shared"),
        {name: 1e6 * seconds for name, seconds in bounds.items()},
    )


def merged(counts: Counts) -> Counts:
    """Kernels of the same name, such as two instances for two lambdas, as one."""
    kernels: dict[str, Kernel] = {}
    for kernel in counts.kernels:
        before = kernels.get(kernel.name, Kernel(kernel.name, 0, 0, 0, 0, 0, 0, 0))
        sums = [a + b for a, b in zip(before[1:], kernel[1:], strict=True)]
        kernels[kernel.name] = Kernel(kernel.name, *sums)
    return Counts(list(kernels.values()), counts.sites)


def cases(only: str) -> Iterator[GpuCase]:
    """Those of the suites whose name has this text."""
    from benchmarks.gpu.__main__ import SUITES

    suites: list[Callable[[Device], Iterator[GpuCase]]] = [
        suite for suite in SUITES if suite.__name__ not in LEFT_OUT and only in suite.__name__
    ]
    for suite in suites:
        yield from suite(Device("cpu", small=False))


def rows(only: str) -> Iterator[tuple[GpuCase, int, list[Row]]]:
    """Case by case."""
    compiled = Compiled(LIBRARY)
    for case in cases(only):
        counts, scale = count(case)
        counts = merged(counts)
        yield case, scale, [row(case, counts, scale, k, compiled) for k in counts.kernels]


HEADER = f"""# What each CUDA kernel cannot be faster than

By `make cuda-roofline`: counted on the CPU, for an H100 SXM5 with {MULTIPROCESSORS}
multiprocessors at {CYCLES / 1e9:.2f} GHz and {MEMORY / 1e12:.2f} TB/s. No time is measured: a
kernel takes longer than its row says. What the counts are and what they are not:
[Kernels](../../docs/kernels.md#what-the-emulator-counts).

- **launches**: of the kernel in one call.
- **memory**, **L2**: MB that must come from memory or go there, and that the multiprocessors
  exchange with the L2 cache.
- **sectors**, **banks**: of global and of shared memory: what the requests would touch if their
  bytes lay side by side, divided by what they touch.
- **at least**: microseconds, and what takes them: memory, the L2 cache, the load-store units (LSU),
  the issue of instructions, or arithmetic in float64.
- **/ n**: the inputs were cut to this part, and the counts multiplied.

| operator | workload | kernel | launches | memory MB | L2 MB | sectors | banks | at least us | by |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""


def line(found: Row, scale: int) -> str:
    """A row of the table."""
    shares = ["" if x is None else f"{x:.0%}" for x in (found.sectors, found.banks)]
    workload = found.workload + (f" / {scale}" if scale > 1 else "")
    megabytes = [f"{x / 1e6:.2f}" for x in (found.memory_bytes, found.l2_bytes)]
    cells = [
        found.op,
        workload,
        f"`{found.kernel}`",
        f"{found.launches:g}",
        *megabytes,
        *shares,
        f"{found.bounds[found.bound]:.1f}",
        found.bound,
    ]
    return f"| {' | '.join(cells)} |"


def renewed(before: Sequence[str], found: Sequence[str]) -> list[str]:
    """The lines of a table in which those found stand for the former ones of their operators."""
    operators: dict[str, list[str]] = {}
    for lines in (before, found):
        new: dict[str, list[str]] = {}
        for text in lines:
            new.setdefault(text.split(" | ")[0], []).append(text)
        operators |= new
    return [text for lines in operators.values() for text in lines]


def tables_of(file: Path) -> tuple[list[str], list[str]]:
    """The lines of the file's two tables: our kernels, and torchvision beside them."""
    lines = file.read_text().splitlines() if file.exists() else []
    title = cuda_peers.TITLE.strip()
    middle = lines.index(title) if title in lines else len(lines)
    found = []
    for part in (lines[:middle], lines[middle:]):
        rule = next((i for i, text in enumerate(part) if text.startswith("| ---")), len(part))
        found.append([text for text in part[rule + 1 :] if text.startswith("| ")])
    return found[0], found[1]


def main() -> None:
    """Prints or writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="suites whose name has this text")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peers", action="store_true", help=f"only {cuda_peers.TITLE[3:-1]}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out or (OUT if options.peers else None)
    lines, beside = tables_of(out) if out else ([], [])
    if not options.peers:
        found = []
        for _, scale, kernels in rows(options.only):
            found += [line(each, scale) for each in kernels]
            print("\n".join(found[-len(kernels) :]), flush=True)
        lines = renewed(lines, found) if options.only else found
    if out:
        peers = list(cuda_peers.rows(lines, cases(options.only)))
        beside = renewed(beside, peers) if options.only else peers
        texts = [HEADER, *(f"{text}\n" for text in lines), "\n", cuda_peers.NOTES]
        out.write_text("".join([*texts, *(f"{text}\n" for text in beside)]))


if __name__ == "__main__":
    main()
