# SPDX-License-Identifier: BSD-3-Clause
"""Links from docs/ to other files of the repository work in the documentation site too.

A page says `[train_loop.py](../examples/train_loop.py)`, which is right where the repository is
read. The site has no repository around it. So it gets a copy of each file that a page links to, and
of those that such a file links to: Markdown as a page, source code as a page that shows it, other
files as they are. Links are changed to lead there. MkDocs calls `on_files` and `on_page_markdown`
while it builds (`hooks` in mkdocs.yml).
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# [text](path#section), but no address and no section of the same page; or a block of code, whole.
LINK = re.compile(
    r"^```.*?^```|\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", re.DOTALL | re.MULTILINE
)
LANGUAGES = {".py": "python", ".sh": "bash"}


def site_path(path: str) -> str:
    """Where the site has a file; both paths are relative to a root, the repository's or the site's.

    What is outside docs/ gets a folder of its own, so that it cannot take a page's place.
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}.md" if Path(path).suffix in LANGUAGES else f"source/{path}"


def targets(page: str, text: str) -> list[str]:
    """The files that a page of the repository links to, by their paths in the repository."""
    return [_target(page, link[2]) for link in LINK.finditer(text) if link[2]]


def with_site_links(page: str, text: str) -> str:
    """The text of a page of the repository, with links that are right in the site.

    A link to a folder outside docs/ becomes its text: the site has no page for a folder.
    """
    folder = posixpath.dirname(site_path(page)) or "."

    def replaced(link: re.Match[str]) -> str:
        if not link[2]:
            return link[0]
        target = _target(page, link[2])
        if (ROOT / target).is_dir() and not target.startswith("docs"):
            return link[1]
        return f"[{link[1]}]({posixpath.relpath(site_path(target), folder)}{link[3] or ''})"

    return LINK.sub(replaced, text)


def copies(pages: dict[str, str]) -> dict[str, str | None]:
    """What the site needs from outside docs/: Markdown by path; None: the file as it is.

    Args:
        pages: the text of each page under docs/, by its path in the repository.
    """
    found: dict[str, str | None] = {}
    texts = dict(pages)
    while texts:
        page, text = texts.popitem()
        for path in targets(page, text):
            if path in found or path.startswith("docs/") or not (ROOT / path).is_file():
                continue  # a link that leads nowhere is MkDocs' to report
            found[path] = _as_markdown(path)
            if Path(path).suffix == ".md":
                texts[path] = (ROOT / path).read_text(encoding="utf-8")
    return found


def on_files(files: Any, config: Any) -> Any:
    """Adds the copies to the files of the site."""
    from mkdocs.structure.files import File, InclusionLevel

    pages = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for path, markdown in sorted(copies(pages).items()):
        content = {"content": markdown} if markdown else {"abs_src_path": str(ROOT / path)}
        file = File.generated(config, site_path(path), **content)
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Changes the links of the pages under docs/; those of the copies are right already."""
    if page.file.generated_by is None:
        return with_site_links(f"docs/{page.file.src_uri}", markdown)
    return markdown


def _target(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _as_markdown(path: str) -> str | None:
    suffix = Path(path).suffix
    if suffix == ".md":
        return with_site_links(path, (ROOT / path).read_text(encoding="utf-8"))
    if suffix in LANGUAGES:
        code = (ROOT / path).read_text(encoding="utf-8")
        return f"# {path}\n\n```{LANGUAGES[suffix]}\n{code}```\n"
    return None
