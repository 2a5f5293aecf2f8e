# SPDX-License-Identifier: BSD-3-Clause
"""The least that a kernel executes, of graphs that are worked by hand."""

import pytest

from tools import sass

LOOP = """
                Function : kernel
        .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   MOV R1, c[0x0][0x28] ;         /* 0x00000a00ff017b82 */
                                                                  /* 0x000ff00000000800 */
        /*0010*/              @!P0 EXIT ;                         /* 0x000000000000894d */
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   DADD R4, R4, R6 ;
        /*0040*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0050*/               @P1 BRA 0x20 ;
        /*0060*/                   SHFL.IDX PT, R4, R4, R5, 0x1f ;
        /*0070*/                   EXIT ;
        /*0080*/                   BRA 0x80;
"""

BRANCH = """
                Function : kernel
        /*0000*/                   BSSY B0, 0x50 ;
        /*0010*/               @P0 BRA 0x40 ;
        /*0020*/                   FADD R1, R1, R2 ;
        /*0030*/                   BRA 0x50 ;
        /*0040*/                   CALL.REL.NOINC 0x70 ;
        /*0050*/                   EXIT ;
        /*0070*/                   STS.64 [R1], R2 ;
        /*0080*/                   RET.REL.NODEC R2 0x0 ;
"""


def graph(text: str) -> list[sass.Block]:
    (code,) = sass.parse(text).values()
    return sass.blocks(code)


def test_blocks_of_a_loop():
    first, loop, after, _ = graph(LOOP)
    assert (first.instructions, first.next, first.must_follow) == (2, (1,), ())
    assert (loop.instructions, loop.next, loop.must_follow) == (4, (1, 2), (1, 2))
    assert loop.weights == {"global read": 16, "global write": 4}
    assert loop.fp64 == 1
    assert after.weights == {"talk": 1}
    assert not after.next


@pytest.mark.parametrize(
    ("done", "instructions", "fp64"),
    [
        ({}, 20, 0),
        ({"global write": 400}, 20 + 400, 100),
        ({"global read": 1600, "global write": 4}, 20 + 400, 100),
        ({"global write": 400, "talk": 10}, 20 + 400 + 20, 100),
    ],
)
def test_what_ten_warps_execute_at_least(done, instructions, fp64):
    found = sass.least(graph(LOOP), 10, done)
    assert found == pytest.approx((instructions, fp64))


def test_a_branch_is_taken_to_where_it_meets_the_other():
    assert sass.least(graph(BRANCH), 1, {}) == pytest.approx((2 + 1 + 1, 0))  # over the call
    stored = sass.least(graph(BRANCH), 1, {"shared write": 8})
    assert stored == pytest.approx((2 + 1 + 1 + 2, 0))


def test_a_kernel_cannot_do_what_it_has_no_instruction_for():
    assert sass.least(graph(LOOP), 10, {"shared write": 4}) is None
