# SPDX-License-Identifier: BSD-3-Clause
"""PEP 517 backend: setuptools' own, but it requires torch only where none is installed.

An ordinary build requirement would download a second torch beside the user's. The build needs only
torch's headers and finds them by path, so that pip's build isolation does not hide them.
"""

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks of PEP 517 and PEP 660

from native_build import find_torch


def _with_torch(requirements: list[str]) -> list[str]:
    return requirements if find_torch() else [*requirements, "torch>=2.11"]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    """The requirements of `pip wheel` and of a plain install."""
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    """The requirements of `pip install -e`."""
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))
