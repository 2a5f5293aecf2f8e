# SPDX-License-Identifier: BSD-3-Clause
"""Runs CMake and Ninja and puts the libraries into the package; the rest is in pyproject.toml.

The environment variables FASTDET_CUDA (auto | on | off), FASTDET_CUDA_ARCHS (such as "80;90") and
FASTDET_SANITIZE (such as "address,undefined") are passed on to CMakeLists.txt, which describes the
build. With FASTDET_COMPILE=off nothing is compiled: the Makefile does that beside pip.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

from build_backend import find_torch

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """`build_ext` with CMake; the build folder stays, so that a rebuild compiles what changed."""

    def run(self) -> None:
        """Configures, builds and installs into the package (the source tree's, if editable)."""
        if os.environ.get("FASTDET_COMPILE") == "off":
            return
        import pybind11

        torch = find_torch()
        if torch is None:
            raise RuntimeError("fastdet needs torch >= 2.11 to build, and none was found")
        sanitize = os.environ.get("FASTDET_SANITIZE", "")
        name = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        build = ROOT / "build" / (f"{name}-sanitized" if sanitize else name)
        build.mkdir(parents=True, exist_ok=True)
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
            ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-U", "CMAKE_MAKE_PROGRAM"]
            + [f"-D{name}={value}" for name, value in options.items()],
            check=True,
        )
        subprocess.run(["cmake", "--build", build], check=True)
        package = ROOT if self.inplace else Path(self.build_lib)
        subprocess.run(["cmake", "--install", build, "--prefix", package / "fastdet"], check=True)


setup(
    ext_modules=[Extension("fastdet._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
