# SPDX-License-Identifier: BSD-3-Clause
"""Registers, shared memory, occupancy and instructions of CUDA kernels: `make cuda-resources`.

Reads the compiled library with cuobjdump, from the CUDA toolkit or the triton package. Fails if one
of our kernels spills registers, uses local memory, or does not have the instructions that
cuda_expectations.md states; CUB's kernels are not checked. If the committed table of resources
differs from this build, it prints a note and does not fail. It takes about 15 seconds for two
architectures, nearly all of it in cuobjdump.

    python tools/cuda_resources.py [--out FILE]
"""

import argparse
import fnmatch
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "fastdet" / "libfastdet_cuda.so"
EXPECTATIONS = ROOT / "tools" / "cuda_expectations.md"
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
    symbol: str

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


@cache
def names_of(family: str) -> frozenset[str]:
    """What the .cu and .cuh files of a folder of csrc/ define, and those of others they include."""
    texts = [path.read_text() for path in (ROOT / "csrc" / family).glob("*.cu*")]
    includes = {name for text in texts for name in re.findall(r'"\.\./(\w+/\w+\.cuh)"', text)}
    texts += [(ROOT / "csrc" / name).read_text() for name in includes if "device/" not in name]
    names: set[str] = set()
    for text in texts:
        code = re.sub(r"//.*|__launch_bounds__\((\([^)]*\)|[^()])*\)", "", text)
        names.update(re.findall(r"^(?:struct|class) (\w+)", code, re.M))
        names.update(
            re.findall(r"^(?!template|using|namespace)\w[\w\s:<>,*&]*?\b(\w+)\(", code, re.M)
        )
    return frozenset(names)


def family_of(symbol: str, name: str) -> str:
    """The folder of csrc/ that defines a kernel of this symbol and short name, or its loop's body.

    It is one of those that were compiled together, which the symbol names. Their kernels' names
    differ. Empty for a library's kernel, and for a template of a header.
    """
    unit = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(?:unity_)?(\w+?)_cu_", symbol)
    if unit is None:
        return ""
    folders = sorted({path.parent.name for path in ROOT.glob("csrc/*/*.cu")})
    compiled = [folder for folder in folders if f"_{folder}_" in f"_{unit[1]}_"]
    for word in re.findall(r"\w+", name):
        for folder in compiled:
            if word in names_of(folder):
                return folder
    return unit[1]


def kernel_name(symbol: str, demangled: str) -> str:
    """`family: function<types>`, or without family, of a kernel's symbol."""
    return short(demangled, family_of(symbol, short(demangled)))


def cuobjdump_lines(option: str, library: Path) -> Iterator[str]:
    """What cuobjdump prints with that option; hundreds of megabytes for the instructions."""
    with subprocess.Popen(
        [cuobjdump(), option, str(library)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        sys.exit(f"cuobjdump {option} {library} failed")


def demangled(symbols: Iterable[str]) -> dict[str, str]:
    """The name of each symbol as C++ writes it."""
    symbols = list(symbols)
    names = subprocess.run(
        ["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return dict(zip(symbols, names, strict=True))


def kernels(library: Path) -> list[Kernel]:
    """Every kernel of each architecture, sorted."""
    arch = symbol = ""
    found = []
    for line in cuobjdump_lines("-res-usage", library):
        if match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):$", line):
            symbol = match[1]
        elif "REG:" in line:
            usage = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            found.append((arch, symbol, usage))
    names = demangled(symbol for _, symbol, _ in found)
    return sorted(
        Kernel(
            arch,
            kernel_name(symbol, names[symbol]),
            usage["REG"],
            usage["STACK"],
            usage["LOCAL"],
            usage["SHARED"],
            symbol,
        )
        for arch, symbol, usage in found
    )


# ---- instructions --------------------------------------------------------------------------------

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*)")
COUNTED = {
    "loads": re.compile(r"LDG\b.*\.128\b"),
    "stores": re.compile(r"STG\b.*\.128\b"),
    "adds": re.compile(r"REDG?\b.*\.ADD\.F32x4\b"),
    "calls": re.compile(r"CALL\b"),
    "fp64": re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|.*(\.F64|64H)\b"),
}
Counts = dict[tuple[str, str], Counter[str]]  # by architecture and symbol


def instructions(library: Path) -> Counts:
    """How many instructions of each kind in COUNTED a kernel has, and "indirect" calls."""
    arch = ""
    by_opcode: Counts = {}
    opcodes: Counter[str] = Counter()
    for line in cuobjdump_lines("-sass", library):
        if match := INSTRUCTION.match(line):
            opcodes[match[1]] += 1
            if match[1].startswith("CALL") and not re.match(r" 0x[0-9a-f]+ ?$", match[2]):
                opcodes["indirect"] += 1
        elif match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            opcodes = by_opcode[arch, match[1]] = Counter()
    counts: Counts = defaultdict(Counter)
    for kernel, found in by_opcode.items():
        for kind, pattern in COUNTED.items():
            counts[kernel][kind] = sum(n for opcode, n in found.items() if pattern.match(opcode))
        counts[kernel]["indirect"] = found["indirect"]
    return counts


def called_functions(library: Path) -> Iterator[tuple[str, str]]:
    """The symbols of kernels and of functions that they call, apart from nvcc's arithmetic."""
    for line in cuobjdump_lines("-symbols", library):
        match = re.match(r"STT_FUNC\s.*\s\$(\w+)\$(\w+)$", line)
        if match and not match[1].startswith("__internal") and "__internal" not in match[2]:
            yield match[1], match[2]


class Expectation(NamedTuple):
    """A row of cuda_expectations.md."""

    pattern: str
    at_least: dict[str, int]
    calls: int | None
    fp64: bool


def expectations(text: str) -> list[Expectation]:
    """The rows of the tables."""
    rows = []
    for row in text.splitlines():
        if row.startswith("| `"):
            name, loads, stores, adds, calls, fp64 = (cell.strip() for cell in row[1:-1].split("|"))
            at_least = {"loads": loads, "stores": stores, "adds": adds}
            least = {kind: int(number) for kind, number in at_least.items() if number}
            pattern = name.strip("`")
            rows.append(Expectation(pattern, least, int(calls) if calls else None, bool(fp64)))
    return rows


def unfulfilled(expected: list[Expectation], rows: list[Kernel], counts: Counts) -> Iterator[str]:
    """One line for each way in which the kernels are not as expected."""
    unused = {row.pattern for row in expected}
    for kernel in rows:
        row = next((e for e in expected if fnmatch.fnmatchcase(kernel.name, e.pattern)), None)
        found = counts[kernel.arch, kernel.symbol]
        where = f"{kernel.arch} {kernel.name}"
        if row is None:
            yield f"{where}: expected a row in {EXPECTATIONS.name}, found none"
            continue
        unused.discard(row.pattern)
        for kind, least in row.at_least.items():
            if kind == "adds" and int(kernel.arch[3:].rstrip("a")) < 90:
                continue
            if found[kind] < least:
                yield f"{where}: expected {least} {kind} of 16 bytes or more, found {found[kind]}"
        if row.calls is not None and found["calls"] > row.calls:
            yield f"{where}: expected {row.calls} calls or fewer, found {found['calls']}"
        if found["fp64"] and not row.fp64:
            yield f"{where}: expected no instructions for float64, found {found['fp64']}"
        if found["indirect"]:
            yield f"{where}: expected no call through a pointer, found {found['indirect']}"
    for pattern in unused:
        yield f"{EXPECTATIONS.name}: {pattern}: expected a kernel, found none"


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
    bad = [
        f"{row.arch} {row.name}: {row.stack} bytes of stack, {row.local} of local memory"
        for row in ours
        if row.stack or row.local
    ]
    names = {row.symbol: row.name for row in ours}
    bad += [
        f"{names[kernel]}: calls {function}, which is not inlined"
        for kernel, function in called_functions(LIBRARY)
        if kernel in names
    ]
    bad += unfulfilled(expectations(EXPECTATIONS.read_text()), ours, instructions(LIBRARY))
    if bad:
        print(*bad, sep="\n")
        sys.exit(f"{len(bad)} faults of {len(ours)} kernels")
    print(f"{len(ours)} kernels: no spills, no local memory, all as in {EXPECTATIONS.name}")
    if changed := outdated(ours, COMMITTED.read_text()):
        path = COMMITTED.relative_to(ROOT)
        print(f"{path} is not of this build, {changed} lines differ: --out {path} renews it")


if __name__ == "__main__":
    main()
