# SPDX-License-Identifier: BSD-3-Clause
"""Reading XML files that others wrote: no entity of a file's own is ever expanded.

About 60 us a file of Pascal VOC. Invariant: whatever the file holds, an element tree comes out or a
ValueError that names the file; a small file cannot fill the memory ("billion laughs").
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

_HEAD = 4096  # bytes in which the first tag is looked for
# In UTF-16 there is a zero between any two characters, whatever the byte order.
_ENTITIES = (b"<!ENTITY", b"\0".join(bytes([byte]) for byte in b"<!ENTITY"))


def root_tag(path: Path) -> str:
    """The name of a file's outermost element, without its namespace; "" where there is none.

    Only the first kilobytes are read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD).replace(b"\0", b"")
    except OSError:
        return ""
    found = re.search(rb"<([A-Za-z_][^\s/>]*)", re.sub(rb"<!--.*?-->", b"", head, flags=re.DOTALL))
    return found[1].decode("utf-8", "replace").rpartition(":")[2] if found else ""


def read_xml(path: Path) -> Element:
    """The outermost element of a file; tags are without namespaces.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not XML, or it declares entities.
    """
    content = read_bytes(path)
    try:
        root = _parsed(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: not an XML file: {error}") from error
    if root.tag.startswith("{") or b"xmlns" in content:
        for element in root.iter():
            if isinstance(element.tag, str):
                element.tag = element.tag.rpartition("}")[2]
    return root


def elements_of(path: Path) -> Iterator[tuple[str, Element]]:
    """Each element of a file at its "start" and its "end", for files that do not fit in memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not XML, or it declares entities.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        yield from ElementTree.iterparse(content, events=("start", "end"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: not an XML file: {error}") from error


def read_bytes(path: Path) -> bytes:
    """The content of an XML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it declares entities.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: expected an XML file, got a folder") from None
    if any(mark in content for mark in _ENTITIES):
        raise ValueError(f"{path}: expected XML without entities of its own, got <!ENTITY")
    return content


def _parsed(content: bytes) -> Element:
    try:
        return ElementTree.fromstring(content)
    except ValueError as error:  # of expat, which knows no encoding of several bytes but UTF
        declared = re.match(rb"\s*<\?xml[^>]*?encoding=[\"']([\w.:-]+)[\"'][^>]*\?>", content)
        if isinstance(error, ElementTree.ParseError) or not declared:
            raise
        text = content[declared.end() :].decode(declared[1].decode("ascii"))
        if "<!ENTITY" in text:
            raise ValueError("expected XML without entities of its own, got <!ENTITY") from error
        return ElementTree.fromstring(text)
