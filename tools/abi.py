# SPDX-License-Identifier: BSD-3-Clause
"""Checks that one build of the libraries runs under every supported torch: `make abi`.

First it reads the symbols of the built libraries. Then it runs the operators' tests with these same
files under several versions of torch, each in a virtual environment of its own in .cache/abi: the
tests that cover every operator, under the oldest version that is supported, one between and the
newest that pip offers. The installed version is left out: `make test` covers it. With the headers
of the oldest and the newest, the CUDA kernels are also compiled for the emulator. `--all` runs all
tests of the operators; most of them test the loops, which do not know torch. `--environments` only
makes the two older environments, which needs no build: `.ci/run` does it while it installs.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastdet"
OLDEST, BETWEEN = "2.11.0", "2.13.0"
ALL_TESTS = ["tests/ops", "-m", "not slow and not emulation"]
EVERY_OPERATOR = ["tests/ops/test_every_op.py", "-m", "not slow and not emulation"]
LOOPS = ["-k", "not million and not instruction_sets"]  # no torch is in the loops
EMULATED = ["tests/ops/test_cuda.py", "-m", "emulation"]

# The libraries that ours may need at load time; torch's are already loaded by then.
ALLOWED_LIBRARIES = (
    "libtorch.so",
    "libtorch_cpu.so",
    "libtorch_cuda.so",
    "libfastdet_loops.so",
    "libstdc++.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libc.so.6",
    "libgomp.so.1",
    "ld-linux",
)
UNSTABLE_PREFIXES = ("at::", "c10::", "torch::", "caffe2::")


def _lines(*command: str | Path) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _name(line: str) -> str:
    """The demangled name after nm's type letter, without a prefix such as "vtable for"."""
    name = line.strip().split(" ", 1)[1].strip()
    for kind in ("vtable for ", "typeinfo for ", "typeinfo name for ", "guard variable for "):
        name = name.removeprefix(kind)
    return name


def unstable_symbols(library: Path) -> Iterator[str]:
    """Undefined symbols of torch's C++ interface, which is not stable between releases."""
    for line in _lines("nm", "-D", "--undefined-only", "--demangle", library):
        if _name(line).startswith(UNSTABLE_PREFIXES):
            yield f"{library.name}: undefined {_name(line)}"


def unexpected_libraries(library: Path) -> Iterator[str]:
    """Needed libraries other than the C++ runtime and torch's public libraries."""
    for line in _lines("readelf", "-d", library):
        if "(NEEDED)" in line:
            needed = line.split("[")[1].rstrip("]")
            if not needed.startswith(ALLOWED_LIBRARIES):
                yield f"{library.name}: needs {needed}"


def leaked_symbols(loops: Path) -> Iterator[str]:
    """Weak symbols of an ISA's object file that are not in that ISA's namespace.

    The linker keeps one copy of a weak symbol: the baseline could then run AVX-512 code.
    """
    (folder,) = (part for part in loops.parts if part.startswith("loops_"))
    isa = folder.removesuffix(".dir").removeprefix("loops_")
    for line in _lines("nm", "--demangle", "--defined-only", loops):
        kind, name = line.split(" ", 2)[1:]
        if kind in "WVu" and f"fastdet::cpu::{isa}::" not in name:
            yield f"{loops.name} for {isa}: weak symbol {name}"


def newest() -> str:
    """The version of torch that pip would install in a new environment, without its local part."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--report", "-", "torch"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report["install"][0]["metadata"]["version"].split("+")[0]


def environment(version: str) -> Path:
    """The Python of a virtual environment with this torch and what the operators' tests need.

    It lacks torch's CUDA packages and triton, 4 GB that no test on a CPU runs.
    """
    folder = ROOT / ".cache" / "abi" / f"torch-{version}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", f"torch=={version}"], check=True)
        script = "import importlib.metadata as m; print(*m.requires('torch'), sep='\\n')"
        needed = [
            requirement
            for requirement in _lines(python, "-c", script)
            if not re.match(r"cuda|nvidia|triton|.*\bextra ==", requirement)
        ]
        needed += ["numpy", "pytest", "hypothesis"]
        subprocess.run([*pip, "--no-warn-conflicts", *needed], check=True)
        done.touch()
    return python


def complete(python: Path, version: str) -> None:
    """Lets this torch load: with the CUDA libraries of the installed torch, else with its own."""
    (packages,) = python.parent.parent.glob("lib/python3*/site-packages")
    libraries = packages / "nvidia"
    installed = importlib.util.find_spec("nvidia")
    if installed and installed.submodule_search_locations and not libraries.exists():
        libraries.symlink_to(next(iter(installed.submodule_search_locations)))
    if subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode:
        if libraries.is_symlink():
            libraries.unlink()
        command = [python, "-m", "pip", "install", "--quiet", f"torch=={version}"]
        subprocess.run(command, check=True)


def main() -> None:
    """Checks the symbols, then runs the operators' tests under each torch."""
    if "--environments" in sys.argv:
        for version in (OLDEST, BETWEEN):
            environment(version)
        return
    # That of csrc/memory/ is for one version of torch, and fastdet/memory.py sees to it.
    libraries = sorted(set(PACKAGE.glob("libfastdet*.so")) - {PACKAGE / "libfastdet_memory.so"})
    build = ROOT / "build" / f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    loops = sorted(build.glob("CMakeFiles/loops_*.dir/csrc/*/*.loops.cpp.o"))
    if not libraries or not loops:
        sys.exit("nothing is built: run `pip install -e .` first")
    problems = [
        *(p for library in libraries for p in unstable_symbols(library)),
        *(p for library in libraries for p in unexpected_libraries(library)),
        *(p for path in loops for p in leaked_symbols(path)),
    ]
    if problems:
        sys.exit("\n".join(problems))
    names = ", ".join(library.name for library in libraries)
    print(f"{names}: no symbol of torch beyond the stable ABI; no code leaks between ISAs")

    installed = metadata.version("torch").split("+")[0]
    for version in dict.fromkeys((OLDEST, BETWEEN, newest())):
        if version == installed:
            continue
        print(f"op tests under torch {version}", flush=True)
        python = environment(version)
        complete(python, version)
        selection = ALL_TESTS if "--all" in sys.argv else [*EVERY_OPERATOR, *LOOPS]
        for tests in (selection,) if version == BETWEEN else (selection, EMULATED):
            result = subprocess.run(
                [python, "-m", "pytest", "-p", "no:cacheprovider", *tests],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            if result.returncode:
                sys.exit(f"the op tests fail under torch {version}")


if __name__ == "__main__":
    main()
