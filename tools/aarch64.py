# SPDX-License-Identifier: BSD-3-Clause
"""Compares the CPU loops on aarch64, under emulation, with the same loops on x86: `make aarch64`.

tools/loops_sample.cpp and all csrc/*/*.loops.cpp, for the instruction set "baseline", are compiled
for both processors and run on the same inputs. Indices must be equal, values equal to 1e-6
relative; how many differ in a bit is printed. It needs g++, aarch64-linux-gnu-g++ and qemu-aarch64
(Debian's packages g++-aarch64-linux-gnu and qemu-user).
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from native_build import find_torch  # noqa: E402

BUILD = ROOT / "build" / "aarch64"
COMPILERS = {"x86": "g++", "aarch64": "aarch64-linux-gnu-g++"}
EMULATOR = "qemu-aarch64"
# As in CMakeLists.txt. Static, so that the emulator needs no libraries of the other processor.
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-DFASTDET_ISA=baseline"]
FLAGS += ["-ffp-contract=off", "-fno-trapping-math", "-fno-loop-unroll-and-jam", "-Wall", "-Wextra"]
RELATIVE, ABSOLUTE = 1e-6, 1e-30


def compile_for(processor: str) -> Path:
    """The program for one of the processors."""
    compiler = COMPILERS[processor]
    folder = BUILD / processor
    folder.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "tools/loops_sample.cpp", ROOT / "csrc/isa/isa.cpp"]
    sources += sorted((ROOT / "csrc").glob("*/*.loops.cpp"))

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.name}.o"
        include = f"-isystem{find_torch()}/include"  # half types, headers only
        subprocess.run([compiler, *FLAGS, include, "-c", source, "-o", out], check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "loops_sample"
    subprocess.run([compiler, "-static", *objects, "-o", program], check=True)
    return program


def run(*command: str | Path) -> list[list[str]]:
    """The lines that a program prints: name, "i" or "f", number."""
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.rsplit(" ", 2) for line in text.splitlines()]


def is_near(a: float, b: float) -> bool:
    """Equal, both NaN, or within the tolerance."""
    if a == b or (a != a and b != b):
        return True
    return abs(a - b) <= ABSOLUTE + RELATIVE * max(abs(a), abs(b))


def compare(x86: list[list[str]], aarch64: list[list[str]]) -> None:
    """Exits with the first differences, if there are any; prints what was compared."""
    if [row[:2] for row in x86] != [row[:2] for row in aarch64]:
        sys.exit("aarch64: expected the results of x86, got others or another number of them")
    wrong, other_bits, indices = [], 0, 0
    for (name, kind, a), (_, _, b) in zip(x86, aarch64, strict=True):
        indices += kind == "i"
        if a == b:
            continue
        other_bits += 1
        if kind == "i" or not is_near(float.fromhex(a), float.fromhex(b)):
            wrong.append(f"{name}: expected {a} as on x86, got {b}")
    names = len({name for name, _, _ in x86})
    print(f"{names} results: {indices} indices and {len(x86) - indices} values are compared")
    print(f"{other_bits} of them have other bits")
    if wrong:
        sys.exit("\n".join([f"aarch64: {len(wrong)} numbers differ", *wrong[:20]]))


def main() -> None:
    """Compiles, runs and compares."""
    for tool in (*COMPILERS.values(), EMULATOR):
        if shutil.which(tool) is None:
            sys.exit(f"aarch64: expected {tool} on the PATH, found none")
    x86, aarch64 = (compile_for(processor) for processor in COMPILERS)
    compare(run(x86), run(EMULATOR, aarch64))


if __name__ == "__main__":
    main()
