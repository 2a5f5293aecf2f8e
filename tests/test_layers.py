# SPDX-License-Identifier: BSD-3-Clause
"""Which part of the package may import which: the arrows of docs/architecture.md."""

import ast
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

import fastdet
from fastdet.models import MODELS

PACKAGE = Path(fastdet.__file__).parent
ALIASES = {"export.py", "models/fused.py", "prediction.py"}  # deprecated names, which only pass on


@cache
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


# The parts of the package, as docs/architecture.md has them: each knows those before it alone.
LAYERS = (
    ("ops",),
    ("engine",),
    ("models",),
    ("data",),
    ("evaluation",),
    ("training",),
    ("predicting",),
    ("deploy", "report"),
    ("checking", "analysing"),
    ("viewing",),
)


@pytest.mark.parametrize("level", range(len(LAYERS) - 1), ids=[layer[0] for layer in LAYERS[:-1]])
def test_a_part_knows_nothing_of_what_stands_above_it(level: int) -> None:
    above = [part for layer in LAYERS[level + 1 :] for part in layer]
    for part in LAYERS[level]:
        beside = [other for other in LAYERS[level] if other != part]
        assert importers(part, *above, *beside) == set()


def test_the_documented_arrows_are_these() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page[page.index("fastdet.ops  <-") :].split("```")[0]
    parts = [part.strip().removeprefix("fastdet.") for part in drawn.split("<-")]
    assert parts == [*(", ".join(layer) for layer in LAYERS), "cli"]


def test_models_meet_the_engine_in_one_place() -> None:
    assert importers("models", "engine") == {"models/detector.py"}


def test_results_are_decoded_in_one_place() -> None:
    for folder in ("analysing", "viewing"):
        users = [file for file, names in imports_of(folder).items() if "msgspec" in names]
        assert not users, folder


def test_training_and_deployment_name_no_family() -> None:
    families = *MODELS, "roi_heads", "rpn"
    names = {get_type_hints(build)["return"].__name__ for build in MODELS.values()}
    for folder in ("analysing", "checking", "deploy", "evaluation", "predicting", "training"):
        assert importers(folder, *(f"models.{family}" for family in families)) == set()
        for file, modules in imports_of(folder).items():
            assert not names & {module.rpartition(".")[2] for module in modules}, file
