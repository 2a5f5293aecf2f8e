# SPDX-License-Identifier: BSD-3-Clause
"""Registers, shared memory and occupancy of every CUDA kernel: `make cuda-resources`.

Reads the compiled library with cuobjdump, from the CUDA toolkit or the triton package. Fails if one
of our kernels spills registers or uses local memory; CUB's kernels are not checked. If the
committed table differs from this build, it prints a note and does not fail.

    python tools/cuda_resources.py [--out FILE]
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "fastdet" / "libfastdet_cuda.so"
COMMITTED = ROOT / "benchmarks" / "results" / "cuda_resources.md"
THREADS = 256  # of a block, to compute the occupancy where a kernel does not fix it

# Of one multiprocessor: registers, shared memory in bytes, warps, blocks.
LIMITS = {"sm_80": (65536, 167_936, 64, 32), "sm_90": (65536, 233_472, 64, 32)}
REGISTER_UNIT = 256  # registers are allocated to a warp in multiples of this


class Kernel(NamedTuple):
    """The resources of one kernel on one architecture."""

    arch: str
    name: str
    registers: int
    stack: int
    local: int
    shared: int

    @property
    def ours(self) -> bool:
        """Whether it is one of our kernels, not CUB's."""
        return "cub::" not in self.name

    @property
    def occupancy(self) -> float | None:
        """The share of a multiprocessor's warps that run at once, in blocks of THREADS."""
        if self.arch not in LIMITS:
            return None
        registers, shared, warps, blocks = LIMITS[self.arch]
        of_block = THREADS // 32
        per_warp = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        resident = min(blocks, warps // of_block, registers // (per_warp * of_block))
        if self.shared:
            resident = min(resident, shared // (self.shared + 1024))
        return resident * of_block / warps


def cuobjdump() -> str:
    """The program's path."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else None
    if found is None:
        sys.exit("expected cuobjdump on the PATH or in the triton package, found none")
    return found


def without_arguments(name: str) -> str:
    """A function's name up to the parenthesis of its arguments."""
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def short(name: str, family: str = "") -> str:
    """`family: function<types>` of a kernel's demangled name."""
    for noise in ("(anonymous namespace)::", "fastdet::cuda::", "fastdet::", "c10::"):
        name = name.replace(noise, "")
    name = re.sub(r"^void |\(IouKind\)|\(OverlapMetric\)|\(bool\)", "", name)
    body = re.match(r"for_each_kernel<(.*)\{lambda\(long\)#(\d+)\}", name)
    if body:
        name = without_arguments(body[1]) + (f", loop {body[2]}" if body[2] != "1" else "")
    return f"{family}: {without_arguments(name)}" if family else without_arguments(name)


def family_of(symbol: str) -> str:
    """The folder of csrc/ that a kernel's symbol names; empty for a library's kernel."""
    file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(?:unity_)?(\w+?)_cu_", symbol)
    return file[1] if file else ""


def kernels(library: Path) -> Iterator[Kernel]:
    """Every kernel of each architecture, sorted."""
    dump = subprocess.run(
        [cuobjdump(), "-res-usage", library], check=True, capture_output=True, text=True
    )
    symbols = re.findall(r"Function (\S+):$", dump.stdout, re.MULTILINE)
    demangled = subprocess.run(
        ["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True
    ).stdout.splitlines()
    names = dict(zip(symbols, demangled, strict=True))
    arch = symbol = ""
    found = []
    for line in dump.stdout.splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):$", line):
            symbol = match[1]
        elif "REG:" in line:
            usage = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            sizes = (usage["REG"], usage["STACK"], usage["LOCAL"], usage["SHARED"])
            found.append(Kernel(arch, short(names[symbol], family_of(symbol)), *sizes))
    yield from sorted(found)


HEADER = f"""# What each CUDA kernel takes

By `python tools/cuda_resources.py --out benchmarks/results/cuda_resources.md`, from the library as
compiled. Shared memory is what a kernel has without asking at launch; occupancy is the share of a
multiprocessor's warps that run at once, in blocks of {THREADS} threads. None spills.

| arch | kernel | registers | shared bytes | occupancy |
| --- | --- | ---: | ---: | ---: |
"""


def line(row: Kernel) -> str:
    """A row of the table."""
    occupancy = "" if row.occupancy is None else f"{row.occupancy:.0%}"
    return f"| {row.arch} | `{row.name}` | {row.registers} | {row.shared} | {occupancy} |"


def outdated(rows: list[Kernel], committed: str) -> int:
    """How many rows of the table are missing or differ, on the architectures of this build."""
    archs = {row.arch for row in rows}
    lines = {text for text in committed.splitlines() if text[2:].partition(" ")[0] in archs}
    return len(lines ^ {line(row) for row in rows})


def main() -> None:
    """Prints or writes the table; exits non-zero where a kernel uses local memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not LIBRARY.exists():
        print("no CUDA library in this build: nothing to check")
        return
    rows = list(kernels(LIBRARY))
    if not rows:
        sys.exit(f"{LIBRARY.name}: expected kernels, found none")
    ours = [row for row in rows if row.ours]
    if options.out:
        options.out.write_text(HEADER + "".join(f"{line(row)}\n" for row in ours))
    bad = [row for row in ours if row.stack or row.local]
    for row in bad:
        print(f"{row.arch} {row.name}: {row.stack} bytes of stack, {row.local} of local memory")
    if bad:
        sys.exit(f"{len(bad)} of {len(ours)} kernels spill or use local memory")
    print(f"{len(ours)} kernels: no spills, no local memory")
    if changed := outdated(ours, COMMITTED.read_text()):
        path = COMMITTED.relative_to(ROOT)
        print(f"{path} is not of this build, {changed} lines differ: --out {path} renews it")


if __name__ == "__main__":
    main()
