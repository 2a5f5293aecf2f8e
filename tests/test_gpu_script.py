# SPDX-License-Identifier: BSD-3-Clause
"""benchmarks/gpu.sh records the result of each step; its exit code says whether all succeeded.

A script replaces Python, so that this can be tested without a GPU. What the script runs is imported
without the packages that a machine with a GPU may lack.
"""

import json
import os
import re
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
  *benchmarks.gpu*) echo measured ;;
  *native_build.py*) echo "built for $FASTDET_CUDA_ARCHS" ;;
  *test_equals_the_cpu*) echo "checked with $OMP_NUM_THREADS" ;;
  *) echo "1 failed"; exit 1 ;;
esac
"""

SANITIZER = """#!/bin/bash
echo "$@"
while [[ $1 != */python ]]; do shift; done
"$@"
echo "ERROR SUMMARY"
"""

# timeout's limit is printed before the command runs.
TIMEOUT = """#!/bin/bash
echo "limit $2"
exec "${@:3}"
"""

# Those of the extras in pyproject.toml that benchmarks/gpu.sh does not ask for.
LACKING = """albumentations av cv2 hotcoco matplotlib mlflow msgspec onnx onnxruntime onnxscript
openvino playwright pycocotools ray rich sahi scipy streamlit supervision tensorboard transformers
tyro ultralytics wandb"""


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
    """The environment in which Python, compute-sanitizer and timeout are scripts."""
    scripts = {"python": STAND_IN, "compute-sanitizer": SANITIZER, "timeout": TIMEOUT}
    for name, text in scripts.items():
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
    tests = ["test_properties", "test_large", "test_operators", "test_models"]
    right = ["build", "memcheck", "racecheck", "bench"]
    assert codes == dict.fromkeys(tests, 1) | dict.fromkeys(right, 0)
    for name, text in (("build", "built for 90"), (tests[0], "1 failed"), ("bench", "measured")):
        assert text in (out / f"{name}.log").read_text()
    threads = max(1, len(os.sched_getaffinity(0)) // 6)
    for name in ("memcheck", "racecheck"):
        text = (out / f"{name}.log").read_text()
        assert f"checked with {threads}\nERROR SUMMARY" in text
        assert "exclude" not in text  # no kernel is spared


def test_a_dry_run_tries_each_step_without_a_gpu(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    python = tmp_path / "python"
    asks_for_no_gpu = STAND_IN.replace('echo "A GPU"', "exit 1").replace("echo 90", "exit 1")
    python.write_text(
        asks_for_no_gpu.replace("case", 'echo "$@" >&2\ncase', 1)
        .replace("echo loaded", "echo 'loaded; torch sees no GPU'")
        .replace("*test_equals", "*collect-only*) echo collected ;;\n  *test_equals")
    )
    done = run(tmp_path / "out", "dry", FASTDET_CUDA_ARCHS="", **stand_ins)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["gpu"], summary["ok"]) == ("none: a dry run", True)
    checks = ["test_properties", "test_large", "test_operators", "test_models"]
    checks += ["memcheck", "racecheck"]
    assert [step["step"] for step in summary["steps"]] == ["build", *checks, "bench"]
    logs = {name: (tmp_path / "out" / f"{name}.log").read_text() for name in ["build", *checks]}
    assert "built for 90" in logs["build"]
    for name in checks:
        assert "-m cuda" in logs[name]
        assert "collected" in logs[name]
        assert "--error-exitcode" not in logs[name]  # compute-sanitizer needs a GPU
    bench = (tmp_path / "out" / "bench.log").read_text()
    assert "--device cpu" in bench
    limit = re.search(r"limit (\d+)\n", bench)
    assert limit
    assert int(limit[1]) > 3000  # a CPU is slow


def test_what_is_missing_is_named(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN.replace("echo loaded", "echo 'No \"native\" module' >&2; exit 1"))
    done = run(tmp_path / "out", "bench", **stand_ins)
    assert done.returncode == 1
    (step,) = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    note = "the CUDA ops are not in use: fastdet cannot be imported: No native module"
    assert step == {"step": "load", "exit_code": 1, "seconds": 0, "note": note}


def test_chosen_steps(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    done = run(tmp_path / "out", "bench", "build", GPU_SECONDS="200", **stand_ins)
    assert done.returncode == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ok"]
    assert [step["step"] for step in summary["steps"]] == ["build", "bench"]
    limit = re.match(r"limit (\d+)\n", (tmp_path / "out" / "bench.log").read_text())
    assert limit
    assert 180 < int(limit[1]) <= 200  # what the build left
    assert run(tmp_path / "out", "brew").returncode == 2


def test_an_unusable_sanitizer_is_no_failure(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text("#!/bin/bash\necho '========= Device not supported'; exit 1\n")
    done = run(tmp_path / "out", "sanitize", **stand_ins)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert [step["exit_code"] for step in steps] == [None, None]
    assert steps[0]["note"].startswith("skipped")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "out", PYTHON=sys.executable)
    assert done.returncode == 3
    assert "sees no GPU" in done.stderr


def test_the_build_needs_no_setuptools() -> None:
    script = "import sys; sys.modules['setuptools'] = None; import native_build"
    subprocess.run([sys.executable, "-c", script], cwd=TREE, check=True)


@pytest.mark.slow
def test_tests_and_benchmarks_of_a_gpu_need_few_packages() -> None:
    paths = re.findall(r"tests test_\w+ (.*?)(?: -|\n)", SCRIPT.read_text())
    script = f"""
import sys
sys.modules |= dict.fromkeys({LACKING!r}.split())
import benchmarks.gpu.__main__
import pytest
paths = {" ".join(paths)!r}.split()
sys.exit(pytest.main(["-m", "cuda", "--collect-only", "-p", "no:cacheprovider", "-q", *paths]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    lost = [
        str(path.relative_to(TREE))
        for path in TREE.glob("tests/**/test_*.py")
        if re.search("^@(gpu_only|on_cuda_kernels)", path.read_text(), re.MULTILINE)
        and f"{path.relative_to(TREE)}: " not in done.stdout
    ]
    assert lost == []
