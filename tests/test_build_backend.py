# SPDX-License-Identifier: BSD-3-Clause
"""Which torch a build uses, when it asks for one, and the version of what it builds."""

import sysconfig
from pathlib import Path

import pytest
import torch
from setuptools.config import pyprojecttoml

import fastdet

build_backend = pytest.importorskip("build_backend", reason="run from the source tree")


def test_finds_the_torch_of_the_environment():
    assert build_backend.find_torch() == Path(torch.__file__).parent


def test_asks_for_torch_only_where_there_is_none(tmp_path, monkeypatch):
    assert "torch>=2.11" not in build_backend.get_requires_for_build_wheel()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert build_backend.find_torch() is None
    assert build_backend._with_torch(["cmake"]) == ["cmake", "torch>=2.11"]


def test_the_version_is_that_of_the_package():
    tree = Path(build_backend.__file__).parent
    project = pyprojecttoml.read_configuration(tree / "pyproject.toml")["project"]
    assert project["version"] == fastdet.__version__
