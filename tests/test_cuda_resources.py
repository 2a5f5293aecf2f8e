# SPDX-License-Identifier: BSD-3-Clause
"""tools/cuda_resources.py reports each way in which a kernel is not what its table says."""

import re
from collections import Counter

import pytest

from tools.cuda_resources import (
    COMMITTED,
    EXPECTATIONS,
    INSTRUCTION,
    ROOT,
    Kernel,
    expectations,
    family_of,
    unfulfilled,
)

TABLE = """
| kernel | loads | stores | adds | calls | FP64 |
| --- | ---: | ---: | ---: | ---: | --- |
| `iou: forward<float>` | 2 | 1 | | 0 | |
| `iou: forward<*` | | | | | float64 |
| `conv: add<*` | | | 4 | | |
"""
RIGHT = {
    "iou: forward<float>": {"loads": 3, "stores": 1},
    "iou: forward<double>": {"fp64": 9, "calls": 5},
    "conv: add<float>": {"adds": 4},
}


def faults(arch: str = "sm_90", **changes: dict[str, int]) -> list[str]:
    """Of the right kernels, changed by short name."""
    rows, counts = [], {}
    for name, found in RIGHT.items():
        found = {**found, **changes.get(name.replace("iou: ", "").partition("<")[0], {})}
        if found.get("absent"):
            continue
        rows.append(Kernel(arch, name, 32, 0, 0, 0, symbol=name))
        counts[arch, name] = Counter(found)
    return list(unfulfilled(expectations(TABLE), rows, counts))


def test_right_kernels_have_no_faults():
    assert faults() == []
    assert faults("sm_100a") == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loads": 1}, "expected 2 loads of 16 bytes or more, found 1"),
        (
            {"stores": 0},
            "expected 1 stores of 16 bytes or more, found 0",
        ),
        ({"calls": 1}, "expected 0 calls or fewer, found 1"),
        ({"fp64": 1}, "expected no instructions for float64, found 1"),
        ({"indirect": 1}, "expected no call through a pointer, found 1"),
    ],
)
def test_each_fault_is_reported(changes, expected):
    assert f"sm_90 iou: forward<float>: {expected}" in faults(forward=changes)


def test_wide_adds_are_expected_from_compute_capability_9_on():
    (fault,) = faults(**{"conv: add": {"adds": 3}})
    assert fault == "sm_90 conv: add<float>: expected 4 adds of 16 bytes or more, found 3"
    assert faults("sm_80", **{"conv: add": {"adds": 0}}) == []


def test_a_kernel_and_a_row_without_the_other_are_faults():
    kernel = Kernel("sm_90", "conv: add<float>", 32, 0, 0, 0, "symbol")
    assert list(unfulfilled([], [kernel], {("sm_90", "symbol"): Counter()})) == [
        f"sm_90 conv: add<float>: expected a row in {EXPECTATIONS.name}, found none"
    ]
    (fault,) = faults(**{"conv: add": {"absent": 1}})
    assert fault == f"{EXPECTATIONS.name}: conv: add<*: expected a kernel, found none"


def test_instructions_are_read_from_what_cuobjdump_prints():
    line = "        /*00e0*/              @!P0 STG.E.128 desc[UR6][R2.64], R4 ;     /* 0x0000 */"
    match = INSTRUCTION.match(line)
    assert match is not None
    assert match[1] == "STG.E.128"
    assert (
        INSTRUCTION.match("                                        /* 0x000fe20003f05070 */")
        is None
    )


def test_the_table_can_be_read():
    rows = expectations(EXPECTATIONS.read_text())
    assert len(rows) == len({row.pattern for row in rows}) > 10


def test_the_family_of_kernels_that_are_compiled_together():
    lines = re.findall(r'"(\w+(?: \w+)+)"', (ROOT / "cmake" / "cuda.cmake").read_text())
    units = {family: line.replace(" ", "_") for line in lines for family in line.split()}
    rows = re.findall(r"^\| sm_90 \| `(\w+): (.*)` \|", COMMITTED.read_text(), re.M)
    assert set(units) < {family for family, _ in rows}
    for family, name in rows:
        symbol = f"_ZN9_GLOBAL__N__0a1b2c3d_12_unity_{units.get(family, family)}_cu_cu__Z1f"
        assert family_of(symbol, name) == family
    assert family_of("_ZN3cub6kernel", "cub::kernel") == ""
