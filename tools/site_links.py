# SPDX-License-Identifier: BSD-3-Clause
"""Links from docs/ to other files of the repository work in the documentation site too.

A page says `[train_loop.py](../examples/train_loop.py)`, which is right where the repository is
read. The site has no repository around it: so it gets a copy of each such file, Markdown as a page,
source code as a page that shows it, and the link is changed to lead there. MkDocs calls the two
functions `on_*` while it builds (`hooks` in mkdocs.yml).
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# [text](path#section), not an address and not a section of the same page
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
SHOWN_AS_CODE = {".py": "python", ".sh": "bash"}


def site_path(path: str) -> str:
    """Where the site has a file of the repository; paths are relative to either's root."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path + ".md" if Path(path).suffix in SHOWN_AS_CODE else path


def linked(page: str, text: str) -> set[str]:
    """The files outside docs/ that a page of the repository links to."""
    targets = {posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) for path in links(text)}
    return {path for path in targets if not path.startswith("docs/") and (ROOT / path).is_file()}


def links(text: str) -> list[str]:
    """The paths that a page links to, as they stand there."""
    return LINK.findall(text)


def with_site_links(page: str, text: str) -> str:
    """The text of a page of the repository, its links as they must be in the site."""

    def replaced(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link[1]))
        there = posixpath.relpath(site_path(target), posixpath.dirname(site_path(page)) or ".")
        return f"]({there}"

    return LINK.sub(replaced, text)


def as_page(path: str) -> str:
    """The Markdown that shows a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = SHOWN_AS_CODE.get(Path(path).suffix)
    return f"# {path}\n\n```{language}\n{text}```\n" if language else with_site_links(path, text)


def on_files(files: Any, config: Any) -> Any:
    """Adds the files that pages link to, and those that these link to."""
    from mkdocs.structure.files import File

    pages = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    wanted = sorted(set().union(*(linked(page, text) for page, text in pages.items())))
    for path in wanted:
        if Path(path).suffix in {".md", *SHOWN_AS_CODE}:
            files.append(File.generated(config, site_path(path), content=as_page(path)))
        else:
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Changes the links of the pages under docs/."""
    if page.file.generated_by is not None:
        return markdown
    return with_site_links(f"docs/{page.file.src_uri}", markdown)
