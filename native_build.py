# SPDX-License-Identifier: BSD-3-Clause
"""Builds the libraries with CMake and Ninja: `python native_build.py` puts them into fastdet/.

setup.py calls it. It needs no setuptools, which a machine may have in an older version than
pyproject.toml asks for. The environment variables FASTDET_CUDA (auto | on | off),
FASTDET_CUDA_ARCHS (such as "80;90") and FASTDET_SANITIZE (such as "address,undefined") are passed
on to CMakeLists.txt, which describes the build.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def find_torch() -> Path | None:
    """The folder of an installed torch that has the headers of the stable ABI, or None."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if environment := os.environ.get("VIRTUAL_ENV"):
        folders += [str(p) for p in Path(environment).glob("lib/python3*/site-packages")]
    folders += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders += [p for p in sys.path if p]
    for folder in folders:
        torch = Path(folder) / "torch"
        if folder and (torch / "include/torch/csrc/stable/tensor.h").exists():
            return torch
    return None


def build(package: Path) -> None:
    """Configures, builds and installs into the package's folder.

    The build folder stays, so that a rebuild compiles what changed.
    """
    import pybind11

    torch = find_torch()
    if torch is None:
        raise RuntimeError("fastdet needs torch >= 2.11 to build, and none was found")
    sanitize = os.environ.get("FASTDET_SANITIZE", "")
    name = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    folder = ROOT / "build" / (f"{name}-sanitized" if sanitize else name)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "FASTDET_TORCH": torch,
        "FASTDET_CUDA": os.environ.get("FASTDET_CUDA", "auto"),
        "FASTDET_CUDA_ARCHS": os.environ.get("FASTDET_CUDA_ARCHS", ""),
        "FASTDET_SANITIZE": sanitize,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    # pip's isolated builds have Ninja in a new folder each time: the cache must not keep it.
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-U", "CMAKE_MAKE_PROGRAM"]
        + [f"-D{name}={value}" for name, value in options.items()],
        check=True,
    )
    subprocess.run(["cmake", "--build", folder], check=True)
    subprocess.run(["cmake", "--install", folder, "--prefix", package], check=True)


if __name__ == "__main__":
    build(ROOT / "fastdet")
