# SPDX-License-Identifier: BSD-3-Clause
"""PEP 517 backend: setuptools' own, but it requires torch only where none is installed.

An ordinary build requirement would download a second torch beside the user's. The build needs only
torch's headers and finds them by path, so that pip's build isolation does not hide them.
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks of PEP 517 and PEP 660


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


def _with_torch(requirements: list[str]) -> list[str]:
    return requirements if find_torch() else [*requirements, "torch>=2.11"]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    """The requirements of `pip wheel` and of a plain install."""
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    """The requirements of `pip install -e`."""
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))
