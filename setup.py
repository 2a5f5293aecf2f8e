# SPDX-License-Identifier: BSD-3-Clause
"""Puts the libraries that native_build.py builds into the package, and names its repository.

The rest is in pyproject.toml. With FASTDET_COMPILE=off nothing is compiled: the Makefile does that
beside pip.
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

import native_build
import repository_urls


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
    project_urls=repository_urls.project_urls(native_build.ROOT),
    ext_modules=[Extension("fastdet._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
