# SPDX-License-Identifier: BSD-3-Clause
"""Puts the libraries that native_build.py builds into the package; the rest is in pyproject.toml.

With FASTDET_COMPILE=off nothing is compiled: the Makefile does that beside pip.
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

import native_build


class CMakeBuild(build_ext):
    """`build_ext` with CMake."""

    def run(self) -> None:
        """Builds into the package, the source tree's if editable."""
        if os.environ.get("FASTDET_COMPILE") == "off":
            return
        native_build.build(
            (native_build.ROOT if self.inplace else Path(self.build_lib)) / "fastdet"
        )


setup(
    ext_modules=[Extension("fastdet._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
