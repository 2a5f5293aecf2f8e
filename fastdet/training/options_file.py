# SPDX-License-Identifier: BSD-3-Clause
"""The options of a training as a YAML file, which starts the same training again.

The file is flat: its keys are the options of `fastdet train`, with their names in Python. They are
read as a command line is, so that a wrong value gets the same message in both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from fastdet.files import replacing
from fastdet.training.options import TrainOptions

NOT_KEPT = ("resume",)  # belongs to one command


def flat(options: Any) -> dict[str, Any]:
    """The options by name, without the groups they are in, as plain data."""
    plain: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            plain |= flat(value)
        elif isinstance(value, Path):
            plain[field.name] = str(value)
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def write_options(options: TrainOptions, path: Path) -> None:
    """Writes all options but `resume`."""
    kept = {name: value for name, value in flat(options).items() if name not in NOT_KEPT}
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")


def read_options(path: Path) -> dict[str, Any]:
    """The options in a file, by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML mapping; a key that is no option.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of options")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected options and their values, got {content!r:.60}")
    known = set(flat(TrainOptions(Path(), Path()))) - set(NOT_KEPT)
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ValueError(
            f"{path}: expected options of fastdet train, got {', '.join(unknown)}; there are: "
            f"{', '.join(sorted(known))}"
        )
    return content


def is_options(path: Path) -> bool:
    """Whether the file has options of a training and nothing else."""
    try:
        return bool(read_options(path))
    except ValueError:
        return False


def as_arguments(content: dict[str, Any], given: Sequence[str]) -> list[str]:
    """Options of a file as arguments, without those that the command line gives.

    Args:
        content: of `read_options`; what is null is unset.
        given: the arguments of the command line.
    """
    names = {argument.partition("=")[0] for argument in given if argument.startswith("--")}
    return [word for name, value in content.items() for word in _argument(name, value, names)]


def _argument(name: str, value: Any, given: set[str]) -> Iterator[str]:
    flag = f"--{name.replace('_', '-')}"
    negated = f"--no-{name.replace('_', '-')}"
    if value is None or value == [] or given & {flag, negated, f"--{name}", f"--no-{name}"}:
        return
    if isinstance(value, bool):
        yield flag if value else negated
        return
    yield flag
    for one in value if isinstance(value, list) else [value]:
        yield repr(one) if isinstance(one, float) else str(one)


def next_to(folder: Path) -> Path:
    """The folder's name with the first free number: runs/a, runs/a-2, runs/a-3."""
    number = 2
    while (free := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return free
