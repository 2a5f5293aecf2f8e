# SPDX-License-Identifier: BSD-3-Clause
"""The addresses in the package's metadata: of the repository that it is built from, or none."""

import subprocess
from pathlib import Path

import pytest

repository_urls = pytest.importorskip("repository_urls", reason="run from the source tree")
ADDRESS = "https://example.org/team/fastdet"
URLS = {
    "Homepage": ADDRESS,
    "Documentation": f"{ADDRESS}/tree/HEAD/docs",
    "Source": ADDRESS,
    "Issues": f"{ADDRESS}/issues",
    "Changelog": f"{ADDRESS}/blob/HEAD/CHANGELOG.md",
}


@pytest.mark.parametrize(
    "remote",
    [
        "https://example.org/team/fastdet",
        "https://example.org/team/fastdet.git\n",
        "https://example.org/team/fastdet/",
        "https://someone:a%40secret@example.org/team/fastdet.git",
        "https://token@example.org/team/fastdet",
        "ssh://git@example.org/team/fastdet.git",
        "ssh://git@example.org:2222/team/fastdet.git",
        "git@example.org:team/fastdet.git",
        "example.org:team/fastdet",
        "git@example.org:/team/fastdet.git",
    ],
)
def test_web_address_of_a_remote(remote: str) -> None:
    assert repository_urls.web_address(remote) == ADDRESS


def test_web_address_keeps_what_belongs_to_it() -> None:
    assert repository_urls.web_address("https://u:p@example.org:8443/a/b/fastdet.x.git") == (
        "https://example.org:8443/a/b/fastdet.x"
    )


@pytest.mark.parametrize(
    "remote",
    [
        "",
        "/srv/git/fastdet.git",
        "../fastdet",
        "file:///srv/git/fastdet.git",
        "C:/git/fastdet",
        "work:team/fastdet.git",  # a name in somebody's settings of ssh
        "https://localhost/team/fastdet",
        "git@example.org:~someone/fastdet.git",
        "https://example.org/fastdet",
        "https://someone:sec/ret@example.org/team/fastdet",
        "/team/fastdet",  # of GITHUB_REPOSITORY without a server
    ],
)
def test_no_web_address_of(remote: str) -> None:
    assert repository_urls.web_address(remote) is None


def git(tree: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", tree, *arguments], check=True, capture_output=True)


def test_urls_of_the_remote_origin(tmp_path: Path) -> None:
    assert repository_urls.project_urls(tmp_path, {}) == {}
    git(tmp_path, "init")
    assert repository_urls.project_urls(tmp_path, {}) == {}
    git(tmp_path, "remote", "add", "origin", "git@example.org:team/fastdet.git")
    assert repository_urls.project_urls(tmp_path, {}) == URLS
    inside = tmp_path / "unpacked"
    inside.mkdir()
    assert repository_urls.project_urls(inside, {}) == {}
    git(tmp_path, "remote", "set-url", "origin", str(tmp_path))
    assert repository_urls.project_urls(tmp_path, {}) == {}


def test_urls_of_the_repository_of_a_workflow(tmp_path: Path) -> None:
    workflow = {
        "GITHUB_SERVER_URL": "https://example.org",
        "GITHUB_REPOSITORY": "team/fastdet",
        "GITHUB_WORKSPACE": str(tmp_path),
    }
    assert repository_urls.project_urls(tmp_path, workflow) == URLS
    elsewhere = {**workflow, "GITHUB_WORKSPACE": str(tmp_path / "of-another-repository")}
    assert repository_urls.project_urls(tmp_path, elsewhere) == {}


def test_urls_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init")
    git(tmp_path, "remote", "add", "origin", ADDRESS)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repository_urls.project_urls(tmp_path, {}) == {}


def test_a_source_distribution_keeps_its_urls(tmp_path: Path) -> None:
    lines = [f"Project-URL: {label}, {url}" for label, url in URLS.items()]
    (tmp_path / "PKG-INFO").write_text("\n".join(["Name: fastdet", *lines, "", "# fastdet", ""]))
    another = {
        "GITHUB_SERVER_URL": "https://example.com",
        "GITHUB_REPOSITORY": "other/other",
        "GITHUB_WORKSPACE": str(tmp_path),
    }
    assert repository_urls.project_urls(tmp_path, another) == URLS
    (tmp_path / "PKG-INFO").write_text("Name: fastdet\n")
    assert repository_urls.project_urls(tmp_path, another) == {}
