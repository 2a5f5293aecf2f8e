# SPDX-License-Identifier: BSD-3-Clause
"""The JSON of a COCO file: lists of records, of which the annotations may be millions.

msgspec finds where each annotation starts and ends. They are handed on as JSON texts of many, so
that a reader takes what it needs of one after the other and never holds them all as objects.
Memory: the file and 60 bytes an annotation. What msgspec refuses and Python's json accepts (NaN,
Infinity, UTF-16, half of a surrogate pair) is left to json, at json's cost.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

SLICE = 20_000  # annotations


def read_json(path: Path) -> dict[str, Any]:
    """The content of a COCO file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a JSON object.
    """
    return _object(path, _loads(path, path.read_bytes()))


def read_json_in_slices(path: Path) -> tuple[dict[str, Any], Iterator[bytes | list[Any]]]:
    """The content of a COCO file, less its annotations, and these, up to SLICE of them at a time.

    "annotations" stays in the content, as [] where it is a list.

    Returns:
        The content; and an iterator of JSON lists, as text, or as objects where only json can
        read the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a JSON object.
    """
    data = path.read_bytes()
    try:
        _check_text(data)
        parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        annotations = msgspec.json.decode(parts.pop("annotations"), type=list[msgspec.Raw])
        content = {name: msgspec.json.decode(part) for name, part in parts.items()}
    except (ValueError, RecursionError, KeyError):
        content = _object(path, _loads(path, data))
        listed = content.get("annotations")
        if not isinstance(listed, list):
            return content, iter([])
        return {**content, "annotations": []}, iter([listed])
    content["annotations"] = []
    starts = range(0, len(annotations), SLICE)
    joined = (b",".join(annotations[start : start + SLICE]) for start in starts)
    return content, (b"[" + part + b"]" for part in joined)


def objects(path: Path, part: bytes) -> list[Any]:
    """What a text of `read_json_in_slices` says; ValueError if part of it is no JSON."""
    try:
        return json.loads(part)
    except (ValueError, RecursionError):
        read_json(path)  # whose error has the place in the file
        raise


def parsed(part: msgspec.Raw) -> Any:
    """What a part of a file says; ValueError if it is no JSON."""
    try:
        return msgspec.json.decode(part)
    except (ValueError, RecursionError):
        return json.loads(bytes(part))


def _check_text(data: bytes) -> None:
    """Raises UnicodeDecodeError; msgspec skips what a reader does not take."""
    if not data.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(data), 2**20):  # without a second copy of the file
            decoder.decode(data[start : start + 2**20])
        decoder.decode(b"", final=True)


def _loads(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:  # broken JSON or broken UTF-8
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: not a COCO file: its lists are nested too deep") from None


def _object(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: a COCO file is a JSON object, this is a {type(content).__name__}"
        )
    return content


def records(
    path: Path, content: dict[str, Any], name: str, keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The list `name` of the file, once each entry has its keys and an id of its own."""
    if not isinstance(content.get(name), list):
        raise ValueError(f"{path}: no list '{name}'")
    check_records(path, content[name], name, keys)
    return content[name]


def check_records(
    path: Path, listed: list[Any], name: str, keys: tuple[str, ...], start: int = 0
) -> None:
    """Raises ValueError unless each entry is an object with its keys and an id of its own.

    Makes an integer of an id that is written as 3.0. `start` is the first entry's position in the
    file's list `name`.
    """
    noun = {"images": "image", "categories": "category", "annotations": "annotation"}[name]
    seen: set[int] = set()
    for position, record in enumerate(listed, start):
        where = f"{path}: {noun} number {position}"
        if not isinstance(record, dict):
            raise ValueError(f"{where} is not an object")
        identity = record.get("id")
        if "id" in record:
            where = f"{path}: {noun} id {identity!r}"
        for key in keys:
            if key not in record:
                raise ValueError(f"{where} has no '{key}'")
        record["id"] = identity = integer(identity)
        if identity is None:
            raise ValueError(f"{where}: an id must be an integer")
        if identity in seen:
            raise ValueError(f"{where} occurs more than once")
        seen.add(identity)


def integer(value: Any) -> int | None:
    """An id, which some writers give as 3.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
