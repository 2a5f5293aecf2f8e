# SPDX-License-Identifier: BSD-3-Clause
"""The addresses that the package's metadata names: those of the repository that it is built from.

setup.py calls it. No address is written down, so that a fork's packages name the fork.
"""

import email.parser
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path


def project_urls(tree: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Labels and addresses for `Project-URL`, of a source tree; empty if it knows none.

    A source distribution has those that it was made with. Otherwise they are of the repository that
    a GitHub workflow checked out here, or of git's remote `origin`.
    """
    if (tree / "PKG-INFO").exists():
        lines = email.parser.HeaderParser().parsestr((tree / "PKG-INFO").read_text("utf-8"))
        return dict(line.split(", ", 1) for line in lines.get_all("Project-URL", []))
    address = None
    # A workflow of another repository may build this one, in another folder.
    if Path(environment.get("GITHUB_WORKSPACE") or os.devnull).resolve() == tree.resolve():
        keys = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY")
        address = web_address("/".join(environment.get(key, "") for key in keys))
    if address is None:
        address = web_address(_origin(tree))
    if address is None:
        return {}
    return {
        "Homepage": address,
        "Documentation": f"{address}/tree/HEAD/docs",
        "Source": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/HEAD/CHANGELOG.md",
    }


def web_address(remote: str) -> str | None:
    """The https address of a git remote: https, ssh or HOST:PATH; None for a path on this machine.

    Users and passwords are left out, and so is the port of ssh, which is not the website's. A host
    needs a dot: other names are of one machine or network.
    """
    remote = remote.strip().rstrip("/").removesuffix(".git")
    host = r"(?:[^@/]*@)?(?P<host>[\w-]+(?:\.[\w-]+)+)"
    path = r"(?P<path>[^/?#~:]+(?:/[^/?#~:]+)+)"
    for pattern in (
        rf"https://{host}(?P<port>:\d+)?/+{path}",
        rf"ssh://{host}(?P<port>)(?::\d+)?/+{path}",
        rf"{host}(?P<port>):/*{path}",
    ):
        if match := re.fullmatch(pattern, remote):
            return f"https://{match['host']}{match['port'] or ''}/{match['path']}"
    return None


def _origin(tree: Path) -> str:
    """The remote `origin` of the repository in `tree`; empty if there is none, or no git."""
    if not (tree / ".git").exists():  # a folder of another repository is not of its origin
        return ""
    # git reads no other user's repository, such as one that a container sees, unless it is told to.
    command = ["git", "-C", str(tree), "-c", "safe.directory=*", "remote", "get-url", "origin"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
