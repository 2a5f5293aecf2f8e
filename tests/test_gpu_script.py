# SPDX-License-Identifier: BSD-3-Clause
"""benchmarks/gpu.sh records the result of each step; its exit code says whether all succeeded.

A script replaces Python, so that this can be tested without a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdet.bench import TREE

SCRIPT = TREE / "benchmarks" / "gpu.sh"

STAND_IN = """#!/bin/bash
case "$*" in
  *sys.prefix*) echo /none ;;
  *get_device_name*) echo "A GPU" ;;
  *get_device_capability*) echo 90 ;;
  *info*) echo loaded ;;
  *xdist*) exit 1 ;;
  *benchmarks.gpu*) echo measured ;;
  *setup.py*) echo "built for $FASTDET_CUDA_ARCHS" ;;
  *test_equals_the_cpu*) echo checked ;;
  *) echo "1 failed"; exit 1 ;;
esac
"""

SANITIZER = """#!/bin/bash
while [[ $1 != */python ]]; do shift; done
"$@"
echo "ERROR SUMMARY"
"""


def run(out: Path, *steps: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, out, *steps],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """The environment in which Python and compute-sanitizer are scripts."""
    sanitizer = (
        '#!/bin/bash\nwhile [[ $1 != */python ]]; do shift; done\n"$@"; echo "ERROR SUMMARY"\n'
    )
    for name, text in (("python", STAND_IN), ("compute-sanitizer", sanitizer)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {"PYTHON": str(tmp_path / "python"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_a_failing_step_does_not_stop_the_others(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    out = tmp_path / "out"
    done = run(out, **stand_ins)
    assert done.returncode == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["gpu"] == "A GPU"
    assert not summary["ok"]
    codes = {step["step"]: step["exit_code"] for step in summary["steps"]}
    assert codes == {"build": 0, "test": 1, "memcheck": 0, "racecheck": 0, "bench": 0}
    for name, text in (("build", "built for 90"), ("test", "1 failed"), ("bench", "measured")):
        assert text in (out / f"{name}.log").read_text()
    assert "checked\nERROR SUMMARY" in (out / "memcheck.log").read_text()


def test_chosen_steps(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    done = run(tmp_path / "out", "bench", "build", **stand_ins)
    assert done.returncode == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ok"]
    assert [step["step"] for step in summary["steps"]] == ["build", "bench"]
    assert run(tmp_path / "out", "brew").returncode == 2


def test_an_unusable_sanitizer_is_no_failure(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text("#!/bin/bash\necho '========= Device not supported'; exit 1\n")
    done = run(tmp_path / "out", "sanitize", **stand_ins)
    assert done.returncode == 0
    steps = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert [step["exit_code"] for step in steps] == [None, None]
    assert steps[0]["note"].startswith("skipped")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:

    done = run(tmp_path / "out", PYTHON=sys.executable)
    assert done.returncode == 3
    assert "sees no GPU" in done.stderr
