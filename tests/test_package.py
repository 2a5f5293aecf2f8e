# SPDX-License-Identifier: BSD-3-Clause
"""What `import fastdet` gives: names at their first use, no torch before, stubs that are true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastdet
from fastdet import _native, ops

PACKAGE = Path(fastdet.__file__).parent


def stub(name: str) -> list[ast.stmt]:
    return ast.parse((PACKAGE / name).read_text()).body


def public(names) -> set[str]:
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize(
    "use",
    [
        "assert not hasattr(fastdet, 'x')",
        "assert not hasattr(fastdet, '_x')",
        "assert 'nms' in dir(fastdet) and 'models' in dir(fastdet)",
        "fastdet.__version__",
        "fastdet.numpy.nms",
        "fastdet.files.replacing",
    ],
)
def test_torch_is_not_imported(use):
    code = f"import fastdet, sys; {use}; assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a module's old name
def test_every_listed_name_is_there():
    for name in dir(fastdet):
        assert getattr(fastdet, name) is getattr(fastdet, name)
    assert fastdet.nms is ops.nms
    assert set(ops.__all__) < set(dir(fastdet))


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="module 'fastdet' has no attribute 'x'"):
        _ = fastdet.x  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from fastdet import y  # type: ignore[attr-defined]  # noqa: F401


def test_stub_of_the_package_names_what_there_is():
    names = set()
    for statement in stub("__init__.pyi"):
        if isinstance(statement, ast.ImportFrom):
            names |= {name.asname or name.name for name in statement.names}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.add(statement.target.id)
    assert "*" in names  # of fastdet.ops
    assert names - {"*"} | set(ops.__all__) == set(dir(fastdet))


def test_stub_of_the_native_module_names_what_there_is():
    functions, classes, values = {}, {}, set()
    for statement in stub("_native.pyi"):
        if isinstance(statement, ast.FunctionDef):
            functions[statement.name] = [argument.arg for argument in statement.args.args]
        elif isinstance(statement, ast.ClassDef):
            classes[statement.name] = {
                target.id
                for assignment in statement.body
                if isinstance(assignment, ast.Assign)
                for target in assignment.targets
                if isinstance(target, ast.Name)
            }
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            values.add(statement.target.id)
    assert {*functions, *classes, *values} == public(dir(_native))
    for name, members in classes.items():
        assert members == set(getattr(_native, name).__members__)
    for name, arguments in functions.items():
        signature = re.search(rf"\b{name}\((.*)\) ->", getattr(_native, name).__doc__)
        assert signature is not None
        assert re.findall(r"(\w+): ", signature[1]) == arguments
    assert all(isinstance(getattr(_native, name), str) for name in values)
