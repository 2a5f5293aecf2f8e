# SPDX-License-Identifier: BSD-3-Clause
"""Which package may import which: ops <- engine <- models <- training, deploy, evaluation."""

import ast
from pathlib import Path
from typing import get_type_hints

import fastdet
from fastdet.models import MODELS

PACKAGE = Path(fastdet.__file__).parent
ALIASES = {"export.py", "models/fused.py", "prediction.py"}  # deprecated names, which only pass on


def imports_of(folder: str) -> dict[str, set[str]]:
    """The modules that each file of a folder imports, by its path in the package."""
    found: dict[str, set[str]] = {}
    for file in (PACKAGE / folder).rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[file.relative_to(PACKAGE).as_posix()] = names
    assert found
    return {name: names for name, names in found.items() if name not in ALIASES}


def importers(folder: str, *packages: str) -> set[str]:
    """The files of a folder that import one of the packages."""
    prefixes = tuple(f"fastdet.{package}." for package in packages)
    return {
        file
        for file, names in imports_of(folder).items()
        if any(f"{name}.".startswith(prefixes) for name in names)
    }


def test_ops_know_nothing_above_them() -> None:
    above = (
        "analysing",
        "checking",
        "data",
        "deploy",
        "engine",
        "evaluation",
        "models",
        "report",
        "training",
    )
    assert importers("ops", *above) == set()


def test_the_engine_knows_no_detector() -> None:
    above = (
        "analysing",
        "checking",
        "data",
        "deploy",
        "evaluation",
        "models",
        "report",
        "training",
    )
    assert importers("engine", *above) == set()


def test_models_meet_the_engine_in_one_place() -> None:
    assert importers("models", "engine") == {"models/detector.py"}
    assert (
        importers("models", "analysing", "checking", "deploy", "evaluation", "report", "training")
        == set()
    )


def test_data_is_below_its_check() -> None:
    above = ("analysing", "checking", "deploy", "report", "training")
    assert importers("data", *above) == set()


def test_training_and_deployment_name_no_family() -> None:
    families = *MODELS, "roi_heads", "rpn"
    names = {get_type_hints(build)["return"].__name__ for build in MODELS.values()}
    for folder in ("analysing", "checking", "deploy", "evaluation", "training"):
        assert importers(folder, *(f"models.{family}" for family in families)) == set()
        for file, modules in imports_of(folder).items():
            assert not names & {module.rpartition(".")[2] for module in modules}, file
