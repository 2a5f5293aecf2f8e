# SPDX-License-Identifier: BSD-3-Clause
"""The pages for people: their snippets run and print what they say, their links lead somewhere.

And the site that is made of them: it builds without a warning, a network, torch or fastdet, nothing
that it shows comes from elsewhere, and every public name stands in the API reference.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastdet.cli import COMMANDS, main
from tools.site_links import copies, site_path, with_site_links

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *DOCS]
# A snippet, and what it prints where the page says so right below.
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# What a browser loads by itself, as opposed to what a reader may click on.
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']?(?:https?:)?//[^\s>]*|<link[^>]*>"
)
LOADED_BY_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*")
BUILD = """
import socket, sys
def refuse(*_): raise OSError("no network while building")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.modules.update(torch=None, torchvision=None, fastdet=None)
from mkdocs.__main__ import cli
cli(["build", "--strict", "--site-dir", sys.argv[1]])
"""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
@pytest.mark.slow
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code, expected in SNIPPET.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), names)
        if expected:
            assert printed.getvalue() == expected


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for path, section in LINK.findall(FENCE.sub("", page.read_text())):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if section:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert section in anchors, section


@functools.cache
def options_of(command: str) -> set[str]:
    """The options that `fastdet COMMAND --help` lists."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[a-z-]+", printed.getvalue()))


@every_page
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    for command, rest in re.findall(r"\bfastdet ([a-z]+)((?: --[^`#\n]*)?)", text):
        if rest:
            assert command in COMMANDS, command
            options = re.findall(r"(?<= )--[a-z-]+", rest)
            assert set(options) <= options_of(command) | {"--help"}, (command, options)
    for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, re.MULTILINE):
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    for module in re.findall(r"python -m (benchmarks[\w.]*)", text):
        assert importlib.util.find_spec(module), module


def test_every_example_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for example in (ROOT / "examples").glob("*.py"):
        assert f"(../examples/{example.name})" in index, example.name


def test_every_page_says_what_it_answers() -> None:
    for page in DOCS:
        if page.parent.name == "docs" and page.name != "adding_an_operator.md":
            opening = page.read_text().split("\n## ")[0]
            assert re.search(r"This page answers|These pages answer", opening), page.name


@pytest.mark.parametrize(
    "package", ["ops", "models", "numpy", "data", "checking", "evaluation", "analysing"]
)
def test_public_names_stand_in_the_api_reference(package: str) -> None:
    reference = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", reference, re.MULTILINE)
    module = importlib.import_module(f"fastdet.{package}")
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    assert names
    for name in names:
        value = getattr(module, name)
        if not hasattr(value, "__qualname__"):  # a constant: named in the text
            assert f"`{name}`" in reference, name
            continue
        path = f"{value.__module__}.{value.__qualname__}"
        assert path in shown or value.__module__ in shown, path


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(DOCS)
    for page in pages:
        for tag in LOADED.findall(page.read_text()):
            assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag), (page, tag)
    for style in tmp_path.rglob("*.css"):
        assert not LOADED_BY_CSS.findall(style.read_text()), style
    operators = (tmp_path / "api" / "ops" / "index.html").read_text()
    assert "greedy suppression" in operators


def test_links_of_a_page_as_they_are_in_the_site() -> None:
    text = "[a](../examples/train_loop.py) [b](kernels.md#goals) [c](#here) [d](https://x.org/y.md)"
    assert with_site_links("docs/index.md", text) == (
        "[a](source/examples/train_loop.py.md) [b](kernels.md#goals) [c](#here) "
        "[d](https://x.org/y.md)"
    )
    assert with_site_links(
        "benchmarks/README.md", "[a](../docs/faq.md) ![](results/growth.svg)"
    ) == ("[a](../../faq.md) ![](results/growth.svg)")
    assert with_site_links("README.md", "see [the code](csrc) here") == "see the code here"
    code = "```python\nbuilders[name](benchmarks/a.md)\n```"
    assert with_site_links("docs/index.md", code) == code
    assert site_path("docs/api/ops.md") == "api/ops.md"


def test_copies_are_what_pages_link_to_and_what_that_links_to() -> None:
    found = copies({"docs/any.md": "[a](../benchmarks/README.md) [b](../nothing.md) [c](faq.md)"})
    assert set(found) >= {"benchmarks/README.md", "benchmarks/results/growth.svg"}
    assert found["benchmarks/results/growth.svg"] is None
    assert not [path for path in found if path.startswith("docs/")]
    code = copies({"docs/any.md": "[a](../examples/train_loop.py)"})["examples/train_loop.py"]
    assert code is not None
    assert code.startswith("# examples/train_loop.py\n\n```python\n")
