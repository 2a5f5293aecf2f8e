# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures that every test may use."""

import gc
import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterator

import pytest
import torch
from hypothesis import settings

# inductor's C++ without vectors. With them it first compiles a program for each instruction set, to
# see which ones run, and then twice as long.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")

settings.register_profile("fastdet", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastdet")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: Python need not search it for cycles, a tenth of all its work.

    Later it then looks less often for cycles in what the tests make.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(5_000, 10, 10)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return request.param


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C reaches this process, although a shell may have started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that is the user's mistake; returns the one line that says so."""
    from fastdet.cli import main

    def refused(command: list[str]) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(SystemExit) as stop:
                main(command)
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("fastdet: ")
        return lines[0]

    return refused
