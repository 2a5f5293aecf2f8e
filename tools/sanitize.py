# SPDX-License-Identifier: BSD-3-Clause
"""Runs the operators' tests on libraries built with AddressSanitizer and UBSan: `make sanitize`.

The CUDA kernels run too, on the CPU emulator (tests/cuda_emulation), but only in the tests that
cover every operator: all emulated tests take far longer. What torch knows of an operator (opcheck,
graphs) is not of the kernels, whose memory the other tests reach. To choose other tests, give
pytest's arguments: `python tools/sanitize.py tests/ops -m "not slow and not memory"` runs all.

The package with the sanitized libraries is installed into build/sanitized; the source tree is not
changed. The run ends at the first access outside a tensor and at the first undefined operation,
such as a number conversion that overflows or a standard container's index out of range. Leaks are
not checked, because the interpreter itself does not free all its memory.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "sanitized"
# UBSan without null, object-size, pointer-overflow and vptr, which take half of the time to build:
# AddressSanitizer reports the bad access that follows.
SANITIZERS = (
    "address,alignment,bool,bounds,builtin,enum,float-cast-overflow,integer-divide-by-zero,"
    "nonnull-attribute,return,returns-nonnull-attribute,shift,signed-integer-overflow,unreachable,"
    "vla-bound"
)
SELECTIONS = (
    [
        "tests/ops",
        "-m",
        "not slow and not memory and not registration and not emulation and not cuda",
    ],
    # Other orders of lanes and counts of launches run the same kernels again.
    [
        "tests/ops/test_cuda.py",
        "tests/cuda_emulation",
        "-m",
        "emulation and not memory",
        "-k",
        "test_cuda.py or several_blocks",
    ],
)


def runtime(name: str) -> str:
    """The path of a sanitizer's library, which must be loaded before Python starts."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"expected the compiler to have {name}, found none")
    return path


def install() -> None:
    """Installs the sanitized package and copies the tests and sources beside it."""
    shutil.rmtree(TARGET, ignore_errors=True)
    # In pip's isolation, as a user installs: `make install` builds without it.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--target", TARGET, ROOT],
        check=True,
        env={**os.environ, "FASTDET_CUDA": "off", "FASTDET_SANITIZE": SANITIZERS},
    )
    for folder in ("tests", "csrc", "benchmarks", "tools"):
        shutil.copytree(ROOT / folder, TARGET / folder)
    shutil.copy(ROOT / "pyproject.toml", TARGET)


def main() -> None:
    """Builds and tests; exits with the code of the first test run that fails."""
    install()
    # libstdc++ too: the sanitizer looks up __cxa_throw before the first library that throws.
    libraries = [runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
    environment = {
        **os.environ,
        "FASTDET_SANITIZE": SANITIZERS,
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    # pytest may not capture the file descriptor of stderr, where the sanitizers report.
    for selection in [sys.argv[1:]] if sys.argv[1:] else SELECTIONS:
        command = [sys.executable, "-m", "pytest", "--capture=sys", *selection]
        result = subprocess.run(command, cwd=TARGET, env=environment)
        if result.returncode:
            sys.exit(result.returncode)


if __name__ == "__main__":
    main()
