# SPDX-License-Identifier: BSD-3-Clause
"""What a part of the inputs does is what the whole does, divided."""

import os
from pathlib import Path

import pytest

import fastdet
from benchmarks.gpu.case import GpuCase, forward
from tests.ops.test_every_op import boxes
from tools import cuda_peers, cuda_roofline
from tools.cuda_roofline import Compiled, Row

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif("FASTDET_SANITIZE" in os.environ, reason="a sanitizer has its own hooks"),
]

N, M = 10, 320


def only_row(op: str) -> Row:
    """Of the overlaps of N with M boxes, under this name."""
    case = GpuCase(
        op=op,
        workload="",
        inputs=(boxes(N), boxes(M, seed=3)),
        sides={"fastdet": forward(fastdet.box_iou)},
    )
    counts, scale = cuda_roofline.count(case)
    (kernel,) = cuda_roofline.merged(counts).kernels
    return cuda_roofline.row(case, counts, scale, kernel, Compiled(Path("no library")))


def test_a_part_stands_for_the_whole():
    whole, part = only_row("not cut"), only_row("box_iou")
    assert whole.memory_bytes == 16 * (N + M) + 4 * N * M
    assert part.memory_bytes == whole.memory_bytes
    assert part.kernel == whole.kernel
    assert part.bounds["memory"] == pytest.approx(1e6 * part.memory_bytes / 3.35e12)
    assert part.bound in part.bounds


def test_a_part_of_each_cut_input_is_run():
    case = GpuCase(op="box_iou", workload="", inputs=(boxes(N), boxes(M)), sides={})
    (first, second), scale, cut = cuda_roofline.shortened(case)
    assert (len(first), len(second), scale, cut) == (N, M // 16, 16, {1})


def test_only_the_rows_of_what_was_counted_are_renewed():
    before = ["| nms | 9 | `a` |", "| nms | 10 | `a` |", "| nmm | 9 | `a` |"]
    found = ["| nms | 9 | `b` |", "| soft_nms | 9 | `c` |"]
    assert cuda_roofline.renewed(before, found) == [found[0], before[2], found[1]]


def test_the_committed_tables_are_read():
    text = cuda_roofline.OUT.read_text()
    lines, beside = cuda_roofline.tables_of(cuda_roofline.OUT)
    assert {found.count("|") for found in lines} == {11}
    assert {found.count("|") for found in beside} == {8}
    notes = cuda_peers.NOTES
    whole = [cuda_roofline.HEADER, *(f"{x}\n" for x in lines), "\n", notes]
    assert "".join([*whole, *(f"{x}\n" for x in beside)]) == text
