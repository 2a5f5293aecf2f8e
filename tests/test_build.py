# SPDX-License-Identifier: BSD-3-Clause
"""Which torch, compiler and CUDA kernels a build takes, and the version of what it builds."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pybind11
import pytest
import torch
from setuptools.config import pyprojecttoml

import fastdet

build_backend = pytest.importorskip("build_backend", reason="run from the source tree")
native_build = pytest.importorskip("native_build", reason="run from the source tree")
TREE = Path(build_backend.__file__ or "").parent
Configure = Callable[..., tuple[int, str]]


def test_finds_the_torch_of_the_environment():
    assert native_build.find_torch() == Path(torch.__file__).parent


def test_asks_for_torch_only_where_there_is_none(tmp_path, monkeypatch):
    assert "torch>=2.11" not in build_backend.get_requires_for_build_wheel()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert native_build.find_torch() is None
    assert build_backend._with_torch(["cmake"]) == ["cmake", "torch>=2.11"]


def test_the_version_is_that_of_the_package():
    project = pyprojecttoml.read_configuration(TREE / "pyproject.toml")["project"]
    assert project["version"] == fastdet.__version__


def test_the_makefile_installs_what_the_build_requires():
    required = pyprojecttoml.load_file(TREE / "pyproject.toml")["build-system"]["requires"]
    (command,) = re.findall("pip install (torch torchvision .*)", (TREE / "Makefile").read_text())
    assert set(required) <= set(shlex.split(command))


def test_pip_compiles_nothing_where_the_makefile_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", tmp_path],
        cwd=TREE,
        env={**os.environ, "FASTDET_COMPILE": "off"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Configures a build in a new folder; gives the exit status and what CMake printed."""

    def configure(environment: dict[str, str], **options: str) -> tuple[int, str]:
        options.setdefault("FASTDET_TORCH", str(native_build.find_torch()))
        options["Python_EXECUTABLE"] = sys.executable
        options["pybind11_DIR"] = pybind11.get_cmake_dir()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["cmake", "-S", TREE, "-B", tmp_path / "build", "-G", "Ninja"]
            + [f"-D{name}={value}" for name, value in options.items()],
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return configure


def path_without_nvcc() -> str:
    folders = [str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)]
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / "nvcc").exists())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cuda", "code", "message"),
    [
        ("off", 0, "CUDA kernels not built (FASTDET_CUDA=off)"),
        ("auto", 0, "CUDA kernels not built (no nvcc was found)"),
        ("on", 1, "FASTDET_CUDA=on, but no nvcc was found"),
        ("yes", 1, "FASTDET_CUDA: expected auto, on or off, got 'yes'"),
    ],
)
def test_cuda_kernels_of_a_build_without_nvcc(
    configure: Configure, cuda: str, code: int, message: str
) -> None:
    status, printed = configure({"PATH": path_without_nvcc()}, FASTDET_CUDA=cuda)
    assert message in printed
    assert status == code, printed


def nvcc_version() -> str:
    """Such as 13.0."""
    printed = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    (version,) = re.findall(r"release (\d+\.\d+)", printed.stdout)
    return version


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize("cuda", ["on", "auto"])
def test_cuda_kernels_of_a_build_with_nvcc(configure: Configure, cuda: str) -> None:
    status, printed = configure({}, FASTDET_CUDA=cuda, FASTDET_CUDA_ARCHS="90;80")
    assert "CUDA kernels for 80 90 + PTX" in printed
    if torch.version.cuda and torch.version.cuda.split(".")[0] == nvcc_version().split(".")[0]:
        assert "but torch of CUDA" not in printed
    assert status == 0, printed


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize(
    ("archs", "message"),
    [
        (
            "70;90",
            "expected GPU architectures from 75 on, got 70; FASTDET_CUDA_ARCHS chooses others",
        ),
        ("native", "FASTDET_CUDA_ARCHS: expected numbers such as 80;90, got 'native'"),
    ],
)
def test_architectures_that_the_kernels_are_not_for(
    configure: Configure, archs: str, message: str
) -> None:
    status, printed = configure({}, FASTDET_CUDA="on", FASTDET_CUDA_ARCHS=archs)
    assert message in printed
    assert status == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_a_build_with_another_cuda_than_torchs_says_so(
    configure: Configure, tmp_path: Path
) -> None:
    other = tmp_path / "torch"
    other.mkdir()
    for name in ("include", "lib"):
        (other / name).symlink_to((native_build.find_torch() or Path()) / name)
    (other / "version.py").write_text("cuda: Optional[str] = '9.2'\nhip: Optional[str] = None\n")
    status, printed = configure({}, FASTDET_CUDA="on", FASTDET_TORCH=str(other))
    assert re.search(r"nvcc is of CUDA \d+\.\d+, but torch of CUDA 9\.2: the CUDA kernels", printed)
    assert status == 0, printed


@pytest.mark.slow
def test_the_compiler_is_that_of_cxx(configure: Configure, tmp_path: Path) -> None:
    compiler = tmp_path / "another-g++"
    compiler.symlink_to(shutil.which("g++") or "")
    status, printed = configure({"CXX": str(compiler)}, FASTDET_CUDA="off")
    assert f"Check for working CXX compiler: {compiler}" in printed
    assert status == 0
