# SPDX-License-Identifier: BSD-3-Clause
"""Runs the benchmarks, which are in the source tree beside the package and are not installed.

They run in new processes, so that the state of this one does not influence them.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
NEEDS = ("pytest_benchmark", "torchvision", "rich", "matplotlib")


def run_suites(*arguments: str, suites: Sequence[str] = ("benchmarks",)) -> None:
    """Runs suites, all by default.

    Args:
        arguments: pytest's, and those of benchmarks/conftest.py.
        suites: folders, files or functions in the source tree, as pytest takes them.

    Raises:
        FileNotFoundError, ModuleNotFoundError: see `run_module`.
        subprocess.CalledProcessError: a suite failed.
    """
    run_module("pytest", *suites, "-s", "--benchmark-quiet", *arguments)


def run_module(name: str, *arguments: str) -> None:
    """Runs `python -m name arguments` in the source tree.

    Raises:
        FileNotFoundError: fastdet was installed without its source.
        ModuleNotFoundError: a package that the benchmarks need is not installed.
        subprocess.CalledProcessError: it failed.
    """
    if not (TREE / "benchmarks" / "conftest.py").exists():
        raise FileNotFoundError(
            "the benchmarks are in the source tree: clone it and install it with pip install -e ."
        )
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    subprocess.run([sys.executable, "-m", name, *arguments], cwd=TREE, check=True)
