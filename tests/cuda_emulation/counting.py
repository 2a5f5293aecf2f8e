# SPDX-License-Identifier: BSD-3-Clause
"""What the CUDA kernels ask of memory, counted on the CPU, and their races in shared memory.

The kernels are compiled once more, as `torch.ops.fastdet_counted.*`, with a call at each access of
memory (see hooks.cpp). `counted` and `racing` run them in place of fastdet's operators. What is
counted exactly and what is an approximation: include/requests.h and include/races.h.
"""

import ctypes
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.cuda_emulation import HERE, ROOT, compile_library, launching, overridden_by
from tools.cuda_resources import short

# Not split: a copy of 16 bytes is one instruction of a GPU. -g1: source lines.
OPTIONS = (
    "-DFASTDET_COUNTED",
    "-g1",
    "-fsanitize=thread",
    "--param",
    "tsan-instrument-func-entry-exit=0",
    "-fno-tree-sra",
    "-finline-small-functions",
)
EMULATOR = [HERE / name for name in ("block.cpp", "hooks.cpp", "races.cpp", "requests.cpp")]
SPACES = ("global", "shared")
KINDS = ("read", "write", "atomic")
MEMSET = "memset"
SECTOR_BYTES = 32


class Site(NamedTuple):
    """The requests of a kernel at one place of its code.

    Attributes:
        kernel: its name.
        where: file and line.
        space: global or shared.
        kind: read, write or atomic.
        bytes: of a lane.
        requests: instructions of warps.
        lanes: the active ones of all requests.
        asked: bytes that these lanes want.
        sectors: of 32 bytes that the requests touch; in shared memory, passes through the banks.
        ideal: the same, if the bytes of each request lay side by side.
        cycles: of a multiprocessor's load-store unit, at least.
        same: lanes at the most wanted address of each request; counted for atomics only.
    """

    kernel: str
    where: str
    space: str
    kind: str
    bytes: int
    requests: int
    lanes: int
    asked: int
    sectors: int
    ideal: int
    cycles: int
    same: int


class Kernel(NamedTuple):
    """All launches of a kernel.

    Attributes:
        name: as `cuda_resources.short` gives it.
        launches, blocks, warps: their numbers.
        talks: votes and shuffles of warps.
        l2_bytes: exchanged with the L2 cache, at least: what a multiprocessor's blocks read is read
            once where that is possible.
        read: bytes of inputs that this kernel is the first to touch.
        written: bytes of outputs that this kernel is the last to write.
    """

    name: str
    launches: int
    blocks: int
    warps: int
    talks: int
    l2_bytes: int
    read: int
    written: int


class Race(NamedTuple):
    """Two accesses of a byte of shared memory that no barrier orders."""

    kernel: str
    before: str
    kind_before: str
    after: str
    kind_after: str


@dataclass
class Counts:
    """Filled at the end of the context.

    Attributes:
        kernels: in the order of their first launch.
        sites: of all kernels.
        outputs: tensors whose writes are to be counted, to be given in the context.
    """

    kernels: list[Kernel] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


class Places:
    """Names of addresses in a library compiled with -g1."""

    def __init__(self, library: Path) -> None:
        self._library = library
        self._frames: dict[int, list[tuple[str, str]]] = {}

    def look_up(self, addresses: Iterable[int]) -> None:
        """Reads the names of many addresses at once, which takes as long as of one."""
        new = sorted(set(addresses) - self._frames.keys())
        if not new:
            return
        run = subprocess.run(
            ["addr2line", "-e", self._library, "-f", "-C", "-i", "-a"],
            input="\n".join(hex(address) for address in new),
            check=True,
            capture_output=True,
            text=True,
        )
        frames: list[tuple[str, str]] = []
        function = ""
        for text in run.stdout.splitlines():
            if re.fullmatch(r"0x[0-9a-f]{16}", text):
                frames = self._frames[int(text, 16)] = []
                function = ""
            elif not function:
                function = text
            else:
                frames.append((function, text))
                function = ""

    def function(self, address: int) -> str:
        """The demangled name of the function that begins here."""
        return self._frames[address][0][0]

    def line(self, address: int) -> str:
        """The innermost source line, `csrc/nms/nms.cu:12`, that is not of a pack or a stand-in."""
        ours = [where for _, where in self._frames[address] if where.startswith(str(ROOT))]
        lines = [str(Path(where).resolve().relative_to(ROOT)) for where in ours]
        lines = [re.sub(r" \(discriminator \d+\)", "", line) for line in lines]
        passing = ("csrc/device/packs.cuh", "csrc/geometry/", "tests/cuda_emulation/include/")
        return next((line for line in lines if not line.startswith(passing)), (lines or ["?"])[0])


class CountedLibrary:
    """Kernels that were compiled to be counted."""

    def __init__(self, sources: list[Path], name: str) -> None:
        self.path = compile_library([*sources, *EMULATOR], name, OPTIONS)
        torch.ops.load_library(self.path)
        self.functions = ctypes.CDLL(str(self.path))
        self.functions.cuda_count_end.restype = ctypes.c_char_p
        self._places = Places(self.path)

    @contextmanager
    def counted(
        self, inputs: Iterable[Tensor] = (), scale: int = 1, cut: Iterable[Tensor] = ()
    ) -> Iterator[Counts]:
        """Counts what the kernels do in this context.

        Args:
            inputs: tensors whose first reads are counted as such.
            scale: how many times as large the grids are thought to be: of blocks that share a
                multiprocessor.
            cut: more inputs, thought to be so many times as large, too: their reads count as often.
        """
        counts = Counts()
        self.functions.cuda_count_requests(ctypes.c_double(scale))
        for weight, tensors in ((1, inputs), (scale, cut)):
            for tensor in tensors:
                self.functions.cuda_count_input(*_memory(tensor), ctypes.c_uint64(weight))
        try:
            yield counts
            for tensor in counts.outputs:
                self.functions.cuda_count_output(*_memory(tensor))
        finally:
            rows = self._end()
        self._fill(counts, rows)

    def _fill(self, counts: Counts, rows: list[tuple[str, list[int]]]) -> None:
        kernels = {row[0]: row[1:] for kind, row in rows if kind == "kernel"}
        sites = [row for kind, row in rows if kind == "site"]
        self._places.look_up(row[0] for row in kernels.values())
        self._places.look_up(row[1] - 1 for row in sites)
        lines = [self._places.line(row[1] - 1) for row in sites]
        folders: dict[int, list[str]] = {}
        for row, line in zip(sites, lines, strict=True):
            folders.setdefault(row[0], []).append(line)
        names = {
            number: self._name(row[0], folders.get(number, [])) for number, row in kernels.items()
        }
        for number, (_, launches, blocks, warps, talks, *sectors) in kernels.items():
            found = (SECTOR_BYTES * n for n in sectors)
            counts.kernels.append(Kernel(names[number], launches, blocks, warps, talks, *found))
        for (number, _, space, kind, *numbers), line in zip(sites, lines, strict=True):
            counts.sites.append(Site(names[number], line, SPACES[space], KINDS[kind], *numbers))

    def _name(self, address: int, lines: list[str]) -> str:
        """The name of a kernel that begins here and has these lines; its family is theirs."""
        if not address:
            return MEMSET
        name = self._places.function(address).replace("fastdet_counted::", "fastdet::")
        lines = [self._places.line(address), *lines]
        families = [line.split("/")[-2] for line in lines if "/" in line]
        return short(name, next((f for f in families if f not in ("device", "geometry")), ""))

    @contextmanager
    def racing(self, talks_order: bool = True) -> Iterator[list[Race]]:
        """Gives a list that is filled at the end with the races in this context.

        Args:
            talks_order: also a vote or a shuffle orders the accesses of its warp. CUDA promises
                it of barriers only.
        """
        races: list[Race] = []
        self.functions.cuda_find_races(ctypes.c_bool(talks_order))
        try:
            yield races
        finally:
            rows = [row for _, row in self._end()]
        self._places.look_up(row[0] for row in rows)
        self._places.look_up(place - 1 for row in rows for place in (row[1], row[3]))
        for function, before, kind_before, after, kind_after in rows:
            lines = [self._places.line(place - 1) for place in (before, after)]
            kinds = KINDS[kind_before], KINDS[kind_after]
            name = self._name(function, lines)
            races.append(Race(name, lines[0], kinds[0], lines[1], kinds[1]))

    def _end(self) -> list[tuple[str, list[int]]]:
        lines = self.functions.cuda_count_end().decode().splitlines()
        rows = (line.partition(" ") for line in lines)
        return [(kind, [int(number) for number in row.split()]) for kind, _, row in rows]


def _memory(tensor: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """Address and bytes of the tensor's storage."""
    storage = tensor.untyped_storage()
    return ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes())


@cache
def load() -> CountedLibrary:
    """All operators' kernels; compiled if need be, and loaded once."""
    sources = [ROOT / "csrc" / "ops.cpp", *sorted(ROOT.glob("csrc/*/*.cu"))]
    return CountedLibrary(sources, "fastdet_counted")


@contextmanager
def counted(
    inputs: Iterable[Tensor] = (), scale: int = 1, cut: Iterable[Tensor] = ()
) -> Iterator[Counts]:
    """Runs fastdet's operators on the kernels that are counted, and counts; see CountedLibrary."""
    library = load()
    with (
        overridden_by("fastdet_counted"),
        launching(library.functions),
        library.counted(inputs, scale, cut) as counts,
    ):
        yield counts


@contextmanager
def racing(talks_order: bool = True) -> Iterator[list[Race]]:
    """Runs fastdet's operators, and looks for races; see CountedLibrary."""
    library = load()
    with (
        overridden_by("fastdet_counted"),
        launching(library.functions),
        library.racing(talks_order) as races,
    ):
        yield races
