# SPDX-License-Identifier: BSD-3-Clause
"""How many instructions a compiled kernel executes at least, given how often it accesses memory.

A kernel's SASS is a graph of blocks that run from their first instruction to their last. How often
a warp runs each of them is unknown, but bounded: by the edges of the graph, and by the loads,
stores, atomics and shuffles that were counted (tests/cuda_emulation/counting.py). Among all runs
that agree with both, a linear program finds one with the fewest instructions. So the result is a
lower bound, if the compiled kernel loads no less than what was counted.
"""

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from tools.cuda_resources import cuobjdump

INSTRUCTION = re.compile(
    r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;"
)
TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")

# What a warp's instruction counts as; of a load or store, the bytes of a lane.
LOADS_AND_STORES = {
    "LDG": ("global read",),
    "LD": ("global read", "shared read"),
    "LDS": ("shared read",),
    "STG": ("global write",),
    "ST": ("global write", "shared write"),
    "STS": ("shared write",),
}
ATOMICS = {
    "ATOMG": ("global atomic",),
    "REDG": ("global atomic",),
    "RED": ("global atomic",),
    "ATOM": ("global atomic", "shared atomic"),
    "ATOMS": ("shared atomic",),
}
TALKS = ("SHFL", "VOTE", "VOTEU", "REDUX", "MATCH")
FP64 = ("DFMA", "DADD", "DMUL", "DSETP", "DMNMX")
KINDS = (
    *(f"{space} {kind}" for space in ("global", "shared") for kind in ("read", "write", "atomic")),
    "talk",
)


class Instruction(NamedTuple):
    """One line of SASS."""

    address: int
    predicate: str
    name: str
    arguments: str

    @property
    def base(self) -> str:
        """The name without its modifiers."""
        return self.name.partition(".")[0]

    @property
    def target(self) -> int | None:
        """The address that it names last."""
        found = TARGET.search(self.arguments)
        return int(found[1], 16) if found else None

    @property
    def bytes(self) -> int:
        """Of a lane, that a load or store moves."""
        sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((sizes[part] for part in self.name.split(".") if part in sizes), 4)


class Block(NamedTuple):
    """Instructions that run one after another.

    Attributes:
        instructions: their number.
        fp64: those of them that compute in float64.
        weights: by kind, what one run does to memory.
        next: blocks that may follow.
        must_follow: those of `next` of which one always follows; none where it may end.
    """

    instructions: int
    fp64: int
    weights: dict[str, int]
    next: tuple[int, ...]
    must_follow: tuple[int, ...]


class Least(NamedTuple):
    """Instructions of all warps, at least."""

    instructions: float
    fp64: float


def functions(library: Path, arch: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel by its symbol."""
    dump = subprocess.run(
        [cuobjdump(), "-sass", "-arch", arch, library], check=True, capture_output=True, text=True
    )
    return parse(dump.stdout)


def parse(dump: str) -> dict[str, list[Instruction]]:
    """The functions of what cuobjdump prints."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in dump.splitlines():
        if "Function :" in line:
            current = found[line.partition(": ")[2].strip()] = []
        elif match := INSTRUCTION.match(line):
            address, predicate, name, arguments = match.groups()
            current.append(Instruction(int(address, 16), predicate or "", name, arguments))
    return found


def blocks(code: list[Instruction]) -> list[Block]:
    """The graph of a kernel; it begins with the first block."""
    meetings: dict[str, set[int]] = {}  # where the lanes that wait at a BSYNC go on
    for line in code:
        if line.base == "BSSY" and line.target is not None:
            meetings.setdefault(line.arguments.partition(",")[0], set()).add(line.target)
    leaders = {code[0].address}
    for line, after in zip(code, [*code[1:], None], strict=True):
        targets, falls = _ways(line, meetings)
        leaders |= targets
        if after and (targets or not falls or line.base == "EXIT"):
            leaders.add(after.address)
    starts = sorted(leaders & {line.address for line in code})
    number = {address: i for i, address in enumerate(starts)}
    pieces: list[list[Instruction]] = [[] for _ in starts]
    place = 0
    for line in code:
        place = number.get(line.address, place)
        pieces[place].append(line)
    return [_block(piece, i, number, meetings) for i, piece in enumerate(pieces)]


def _ways(line: Instruction, meetings: Mapping[str, set[int]]) -> tuple[set[int], bool]:
    """The addresses to which it may jump, and whether the next instruction may follow."""
    conditional = bool(line.predicate)
    if line.base == "BRA":
        conditional |= ".DIV" in line.name or "P" in line.arguments
    if line.base == "BRA":
        return ({line.target} if line.target is not None else set()), conditional
    if line.base == "BSYNC":
        return meetings.get(line.arguments, set()), conditional
    if line.base in ("EXIT", "RET"):
        return set(), conditional
    if line.base == "CALL" or line.name == "WARPSYNC.COLLECTIVE":
        return ({line.target} if line.target is not None else set()), True
    return set(), True


def _block(
    piece: list[Instruction], i: int, number: Mapping[int, int], meetings: Mapping[str, set[int]]
) -> Block:
    last = piece[-1]
    targets, falls = _ways(last, meetings)
    following = {number[target] for target in targets if target in number}
    if falls and i + 1 < len(number):
        following.add(i + 1)
    must_follow = tuple(sorted(following))
    if last.base == "EXIT":
        must_follow = ()
    elif last.base == "CALL":  # it comes back
        must_follow = (i + 1,) if i + 1 in following else ()
    weights: dict[str, int] = {}
    for line in piece:
        for kind in LOADS_AND_STORES.get(line.base, ()):
            weights[kind] = weights.get(kind, 0) + line.bytes
        for kind in ATOMICS.get(line.base, ()):
            weights[kind] = weights.get(kind, 0) + max(1, line.bytes // 4)
        if line.base in TALKS:
            weights["talk"] = weights.get("talk", 0) + 1
    return Block(
        instructions=len(piece),
        fp64=sum(line.base in FP64 for line in piece),
        weights=weights,
        next=tuple(sorted(following)),
        must_follow=must_follow,
    )


def least(graph: list[Block], warps: float, done: Mapping[str, float]) -> Least | None:
    """The least that a kernel executes.

    Args:
        graph: from `blocks`.
        warps: that start.
        done: by kind, what they did: bytes of a lane, summed over the warps' loads or stores;
            atomics; votes and shuffles.

    Returns:
        None where the graph cannot have done it.
    """
    n = len(graph)
    before: list[list[int]] = [[] for _ in graph]
    for i, block in enumerate(graph):
        for j in block.next:
            before[j].append(i)
    rows, limits = [], []

    def limit(terms: Iterable[tuple[int, float]], most: float) -> None:
        row = np.zeros(n)
        for i, factor in terms:
            row[i] += factor
        rows.append(row)
        limits.append(most)

    for i, block in enumerate(graph):
        if i:  # no more often than those before it
            limit([(i, 1), *((j, -1) for j in before[i])], 0)
        if block.must_follow:  # those after it, together, no less often
            limit([(i, 1), *((j, -1) for j in block.must_follow)], 0)
    for kind in KINDS:
        amount = done.get(kind, 0) / warps
        if amount:
            limit([(i, -block.weights.get(kind, 0)) for i, block in enumerate(graph)], -amount)
    bounds = [(1, 1), *[(0, None)] * (n - 1)]

    def fewest(costs: list[int]) -> float | None:
        found = linprog(costs, np.array(rows), np.array(limits), bounds=bounds, method="highs")
        return warps * found.fun if found.success else None

    instructions = fewest([block.instructions for block in graph])
    fp64 = fewest([block.fp64 for block in graph])
    return None if instructions is None or fp64 is None else Least(instructions, fp64)
