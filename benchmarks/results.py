# SPDX-License-Identifier: BSD-3-Clause
"""The result file of `fastdet bench`: what is in it, read and written."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdet.files import replacing

FOLDER = Path(__file__).resolve().parent / "results"
CPU_OPS = FOLDER / "cpu_ops.json"
CPU_DETECTORS = FOLDER / "cpu_detectors.json"
BACKBONES = FOLDER / "backbones.json"  # of `python -m benchmarks.backbone_table`
LOADER = FOLDER / "loader.json"  # of `python -m benchmarks.loader`
ANALYSE = FOLDER / "analyse.json"  # of `python -m benchmarks.analyse`
PREDICT = FOLDER / "predict.json"  # of `python -m benchmarks.predict`
THROUGHPUT = FOLDER / "throughput.json"  # of `python -m benchmarks.throughput`
TRAINING_PRECISION = FOLDER / "training_precision.json"  # of `benchmarks.training_precision`
QUANTIZATION = FOLDER / "quantization.json"  # of `python -m benchmarks.quantization`
CUDA = "cuda_{}.json"  # of a GPU's name


def of_gpus() -> list[Path]:
    """The result files of `python -m benchmarks.gpu`."""
    return sorted(FOLDER.glob(CUDA.format("*")))


@dataclass(frozen=True)
class Point:
    """A row's place among the plots of time against size."""

    panel: str
    axis: str
    x: int


@dataclass(frozen=True)
class GpuWork:
    """What a call makes a GPU do, as the profiler sees it.

    Attributes:
        launches: kernels, copies and fills.
        syncs: waits of the host.
        ms: the time of the launches, without the gaps between them.
    """

    launches: float
    syncs: float
    ms: float


@dataclass(frozen=True)
class SideResult:
    """One side of a row.

    Attributes:
        ms: median milliseconds of a call.
        ratio: this side's time over fastdet's, round by round: lower quartile, median, upper one.
        error: `errors.error`; None where there is no float64 result.
        gpu: what a call makes a GPU do.
    """

    ms: float
    ratio: tuple[float, float, float]
    error: float | None
    gpu: GpuWork | None = None


@dataclass(frozen=True)
class Row:
    """An operator on a workload with a number of threads.

    Attributes:
        sides: results by name; "fastdet" is the first.
        floor_ms: the least time that the work can take, measured in the same rounds.
        floor_kind: what limits the floor, "memory" or "arithmetic".
        target: the ratio to `peer` that is promised for all threads.
        target_ms: our time that is promised on an H100.
        growth: the row only shows how time grows with size.
    """

    op: str
    workload: str
    threads: int
    sides: dict[str, SideResult]
    floor_ms: float | None = None
    floor_kind: str = ""
    target: float | None = None
    growth: bool = False
    point: Point | None = None
    target_ms: float | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """The key by which rows of two files are compared."""
        return self.op, self.workload, self.threads

    @property
    def times_floor(self) -> float | None:
        """Our time over the floor."""
        return self.sides["fastdet"].ms / self.floor_ms if self.floor_ms else None

    @property
    def peer(self) -> SideResult | None:
        """torchvision's side, or the first other one where torchvision has nothing like it."""
        others = (side for name, side in self.sides.items() if name != "fastdet")
        return self.torchvision or next(others, None)

    @property
    def torchvision(self) -> SideResult | None:
        """torchvision's side, where the row has one."""
        return self.sides.get("torchvision")


@dataclass(frozen=True)
class Result:
    """A run.

    Attributes:
        machine: `machine.describe`.
        ceilings: `ceilings.Ceilings` as a dict, by number of threads; of a GPU its bandwidths.
    """

    machine: dict[str, str]
    ceilings: dict[str, dict[str, float]]
    rows: list[Row] = field(default_factory=list)

    @property
    def threads(self) -> int:
        """The largest number of threads."""
        return max(row.threads for row in self.rows)


def write(path: Path, result: Result) -> None:
    """As JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_rounded(asdict(result)), indent=1) + "\n")


def read(path: Path) -> Result:
    """What `write` wrote."""
    content = json.loads(path.read_text())
    rows = []
    for row in content["rows"]:
        row["sides"] = {
            name: SideResult(
                **side
                | {"ratio": tuple(side["ratio"])}
                | ({"gpu": GpuWork(**side["gpu"])} if side.get("gpu") else {})
            )
            for name, side in row["sides"].items()
        }
        row["point"] = Point(**row["point"]) if row["point"] else None
        rows.append(Row(**row))
    return Result(content["machine"], content["ceilings"], rows)


def _rounded(value: Any) -> Any:
    """Four significant digits: more would be noise, and a diff of noise."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
