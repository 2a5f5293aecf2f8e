# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels, compiled with the host's compiler and run on the CPU.

csrc/*/*.cu are compiled unchanged, with include/ instead of CUDA's headers, into a library whose
ops are `torch.ops.fastdet_emulated.*` for CPU tensors. `emulated_kernels` makes `fastdet.ops` use
them, so that any test of an operator can test the logic of its CUDA kernel.

This tests results, indexing, barriers (see the lane orders), reads of shared memory before it is
written, launches that a GPU refuses and, with a sanitizer, memory errors.
It does not test run time, memory order between blocks, or the GPU's rounding in functions such as
expf.
"""

import concurrent.futures
import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cuda_emulation"
COMPILER = os.environ.get("CXX", "g++")
SOURCES = (".cpp", ".cu", ".cuh", ".h")

# The order in which blocks run, and in which the lanes of a block run between two barriers; see
# block.cpp.
LANE_ORDERS = {"ascending": 0, "descending": 1, "shuffled": 2, "shuffled again": 3}


def _flags() -> list[str]:
    sanitizers = os.environ.get("FASTDET_SANITIZE")
    return [
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",  # for #pragma unroll
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-I{HERE / 'include'}",
        f"-isystem{Path(torch.__file__).parent / 'include'}",
        *([f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g1"] if sanitizers else []),
    ]


def compile_library(sources: list[Path], name: str, options: tuple[str, ...] = ()) -> Path:
    """A shared library of the sources and the emulator, rebuilt if any file or flag changes.

    The options are for the kernels' sources, not for the emulator's own.
    """
    files = [*sources, *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh"), *HERE.rglob("*.*")]
    parts = [path.read_bytes() for path in sorted(files) if path.suffix in SOURCES]
    parts.append(" ".join([COMPILER, torch.__version__, *_flags(), *options]).encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = ROOT / "build" / "emulation" / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"lib{name}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be compiling it
        if not library.exists():
            _compile(sources, library, options)
    return library


def _compile(sources: list[Path], library: Path, options: tuple[str, ...]) -> None:
    """Compiles and links the library under a temporary name, then renames it."""
    partial = library.parent / "partial"
    partial.mkdir(exist_ok=True)
    objects = [partial / f"{path.stem}.o" for path in sources]

    def run(*arguments: str | Path) -> None:
        # The compiler must not load the sanitizer of this process.
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        subprocess.run([COMPILER, *_flags(), *arguments], check=True, env=environment)

    # What each source begins with, compiled once: torch's headers take longer than a kernel.
    header = partial / "first.h"
    first = [HERE / "include" / "cuda_emulation.h", ROOT / "csrc" / "torch.h"]
    header.write_text("".join(f'#include "{path}"\n' for path in first))
    if any(path.parent != HERE for path in sources):
        run(*options, "-x", "c++-header", header, "-o", f"{header}.gch")

    def compile_one(source: Path, target: Path) -> None:
        of_kernels = () if source.parent == HERE and source.suffix == ".cpp" else options
        before = [] if source.parent == HERE else ["-include", header]
        run(*of_kernels, *before, "-x", "c++", "-c", source, "-o", target)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    torch_libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
    run("-shared", *objects, *torch_libraries, "-o", partial / library.name)
    (partial / library.name).rename(library)
    shutil.rmtree(partial)


@cache
def load() -> ctypes.CDLL:
    """Builds the library if need be, and loads it once."""
    sources = [ROOT / "csrc" / "ops.cpp", *sorted(ROOT.glob("csrc/*/*.cu")), HERE / "block.cpp"]
    path = compile_library(sources, "fastdet_emulated")
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


@cache
def _emulated_operators(namespace: str) -> tuple[str, ...]:
    """Those with an emulated kernel, of the loaded library."""
    return tuple(
        name.removeprefix(f"{namespace}::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{namespace}::")
        and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    )


def set_lane_order(library: ctypes.CDLL, order: str) -> None:
    library.cuda_emulation_set_lane_order(LANE_ORDERS[order])


@contextmanager
def launching(library: ctypes.CDLL | None = None) -> Iterator[None]:
    """Fails where no emulated kernel is launched in this context: something else ran then."""
    library = library or load()
    before = library.cuda_emulation_num_launches()
    yield
    assert library.cuda_emulation_num_launches() > before, "no emulated kernel was launched"


@contextmanager
def emulated_kernels(order: str = "ascending", *, launches: bool = True) -> Iterator[None]:
    """In this context `torch.ops.fastdet` runs the emulated CUDA kernels for CPU tensors.

    It must launch some, unless `launches` is False.
    """
    library = load()
    set_lane_order(library, order)
    try:
        with overridden_by("fastdet_emulated"), launching() if launches else nullcontext():
            yield
    finally:
        set_lane_order(library, "ascending")


@contextmanager
def overridden_by(namespace: str) -> Iterator[None]:
    """In this context `torch.ops.fastdet` runs the kernels of a loaded library for CPU tensors."""
    import fastdet.ops  # noqa: F401 - loaded later, its operators would replace the emulated ones

    overrides = torch.library.Library("fastdet", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*Overriding a previously registered")
        for name in _emulated_operators(namespace):
            overrides.impl(name, getattr(getattr(torch.ops, namespace), name).default, "CPU")
    try:
        yield
    finally:
        overrides._destroy()
