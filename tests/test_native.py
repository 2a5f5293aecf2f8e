# SPDX-License-Identifier: BSD-3-Clause
"""The instruction set of the CPU kernels: chosen, forced, refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdet import _native

ISAS = _native.usable_cpu_isas()


def isa_of_a_new_process(wanted: str) -> tuple[str, str]:
    """(ISA in use, text on stderr) with FASTDET_CPU_ISA set."""
    done = subprocess.run(
        [sys.executable, "-c", "from fastdet import _native; print(_native.cpu_isa())"],
        env={**os.environ, "FASTDET_CPU_ISA": wanted},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_environment_variable_forces_an_isa(isa):
    assert isa_of_a_new_process(isa) == (isa, "")


def test_an_unusable_isa_is_named_and_the_best_is_used():
    isa, said = isa_of_a_new_process("mmx")
    assert isa == ISAS[-1]
    assert f"expected one of {', '.join(ISAS)} on this processor, got 'mmx'" in said


def test_set_cpu_isa():
    before = _native.cpu_isa()
    try:
        for isa in ISAS:
            _native.set_cpu_isa(isa)
            assert _native.cpu_isa() == isa
        with pytest.raises(ValueError, match="FASTDET_CPU_ISA: expected one of baseline"):
            _native.set_cpu_isa("mmx")
        assert _native.cpu_isa() == ISAS[-1]
    finally:
        _native.set_cpu_isa(before)


def test_byte_products_are_those_of_the_processor():
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    expected = {"baseline": False, "avx2": "avx_vnni" in flags, "avx512": "avx512_vnni" in flags}
    assert {isa: _native.cpu_has_byte_products(isa) for isa in ISAS} == {
        isa: expected[isa] for isa in ISAS
    }
    with pytest.raises(ValueError, match="expected one of"):
        _native.cpu_has_byte_products("mmx")
