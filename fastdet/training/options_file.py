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
# What a resumed training takes from its checkpoint, whether it is given again or not.
OF_THE_START = (
    "pretrained",
    "backbone_weights",
    "weights",
    "anchor_sizes",
    "neck",
    "fpn_channels",
    "batch_norm",
)


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
    """Writes all options but `resume`.

    Of a resumed training the file keeps how it started, also if other files are given now: these
    are not read.
    """
    kept = {name: value for name, value in flat(options).items() if name not in NOT_KEPT}
    if options.resume and path.is_file() and is_options(path):
        before = read_options(path)
        kept |= {name: before[name] for name in OF_THE_START if name in before}
        kept["hypothesis"] = kept["hypothesis"] or before.get("hypothesis")
    with replacing(path) as temporary:
        temporary.write_text(
            yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def read_options(path: Path) -> dict[str, Any]:
    """The options in a file, by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML mapping; a key that is no option.
    """
    content = read_any_options(path)
    known = set(flat(TrainOptions(Path(), Path()))) - set(NOT_KEPT)
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ValueError(
            f"{path}: expected options of fastdet train, got {', '.join(unknown)}; there are: "
            f"{', '.join(sorted(known))}"
        )
    return content


def read_any_options(path: Path) -> dict[str, Any]:
    """The options in a file, also those of another version of fastdet; see `read_options`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of options")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected options and their values, got {content!r:.60}")
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
        content: of `read_options`; null is unset, of `clip` no limit.
        given: the arguments of the command line.
    """
    names = {argument.partition("=")[0] for argument in given if argument.startswith("--")}
    unset = flat(TrainOptions(Path(), Path()))
    return [
        word
        for name, value in content.items()
        if value is not None or unset[name] is not None  # null is a value where it is no default
        for word in _argument(name, value, names)
    ]


def _argument(name: str, value: Any, given: set[str]) -> Iterator[str]:
    flag = f"--{name.replace('_', '-')}"
    negated = f"--no-{name.replace('_', '-')}"
    if value == [] or given & {flag, negated, f"--{name}", f"--no-{name}"}:
        return
    if isinstance(value, bool):
        yield flag if value else negated
        return
    if isinstance(value, str) and value.startswith("-"):
        yield f"{flag}={value}"
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
