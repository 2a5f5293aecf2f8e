# SPDX-License-Identifier: BSD-3-Clause
"""Runs the benchmarks, which lie beside the package in a checkout and are not installed.

In processes of their own: what this one did before must not be in their memory.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
NEEDS = ("pytest_benchmark", "torchvision", "rich", "matplotlib")


def run_suites(*arguments: str) -> None:
    """All suites, with pytest's `arguments` and those of benchmarks/conftest.py.

    Raises:
        FileNotFoundError, ModuleNotFoundError: see `run_module`.
        subprocess.CalledProcessError: a suite failed.
    """
    run_module("pytest", "benchmarks", "-s", "--benchmark-quiet", *arguments)


def run_module(name: str, *arguments: str) -> None:
    """`python -m name arguments` in the checkout.

    Raises:
        FileNotFoundError: fastdet was installed without its source.
        ModuleNotFoundError: a package that the benchmarks need is absent.
        subprocess.CalledProcessError: it failed.
    """
    if not (TREE / "benchmarks" / "conftest.py").exists():
        raise FileNotFoundError(
            "the benchmarks lie in the source tree: clone it and install it with pip install -e ."
        )
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    subprocess.run([sys.executable, "-m", name, *arguments], cwd=TREE, check=True)
