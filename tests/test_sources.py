# SPDX-License-Identifier: BSD-3-Clause
"""Which C++ file may include torch: the loops, the geometry and fastdet.numpy work without it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"

# Folders that serve all families. Every other folder is a family of operators.
SHARED = {"device", "geometry", "host", "isa", "memory", "python", "tensors"}
FAMILIES = sorted(p.name for p in CSRC.iterdir() if p.is_dir() and p.name not in SHARED)

FREE_OF_TORCH = [
    CSRC / "expect.h",
    *sorted((CSRC / "geometry").iterdir()),
    *sorted((CSRC / "isa").iterdir()),
    *sorted((CSRC / "python").iterdir()),
    *(path for name in FAMILIES for path in sorted((CSRC / name).glob("*.loops.cpp"))),
    *(path for name in FAMILIES for path in sorted((CSRC / name).glob("numpy.cpp"))),
    *(
        path
        for name in FAMILIES
        for path in sorted((CSRC / name).glob("*.h"))
        if path.name != "tensors.h"
    ),
]


def includes(path: Path) -> Iterator[str]:
    """What the file includes, `<...>` and `"..."` without the quotes, those of ours as paths."""
    for bracket, name in re.findall(r'^\s*#\s*include ([<"])([^>"]+)', path.read_text(), re.M):
        yield name if bracket == "<" else str((path.parent / name).resolve())


def ways_to_torch(path: Path, seen: set[Path]) -> Iterator[str]:
    """Each include of a torch header that is not header-only, direct or through our headers."""
    for name in includes(path):
        if name.startswith("torch/") and not name.startswith("torch/headeronly/"):
            yield f"{path.relative_to(CSRC)} includes <{name}>"
        elif name.startswith("/") and (file := Path(name)) not in seen:
            seen.add(file)
            yield from ways_to_torch(file, seen)


@pytest.mark.parametrize("path", FREE_OF_TORCH, ids=lambda path: str(path.relative_to(CSRC)))
def test_free_of_torch(path):
    assert list(ways_to_torch(path, set())) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_takes_torch_from_one_header(family):
    for path in (CSRC / family).glob("*.cuh"):
        assert str(CSRC / "torch.h") not in includes(path)


def test_the_rule_sees_torch():
    assert list(ways_to_torch(CSRC / "detections" / "tensors.h", set()))
    assert list(ways_to_torch(CSRC / "nms" / "nms.cpp", set()))
