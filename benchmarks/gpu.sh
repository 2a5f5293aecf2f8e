#!/usr/bin/env bash
# Proof with a GPU, in one command and under nine minutes:
#
#   benchmarks/gpu.sh OUT [build] [test] [sanitize] [bench]
#
#   build     the libraries, for the visible GPU alone, into the source tree; without this step those
#             that lie there are used
#   test      every test marked cuda
#   sanitize  compute-sanitizer's memcheck and racecheck over the tests of all operators
#   bench     python -m benchmarks.gpu: every operator and whole detectors beside torchvision
#
# No step named: all. A step that fails does not stop the later ones, but for a failed build. OUT gets
# a log of each, summary.json, and the result file, whose place is benchmarks/results/; then
# `python -m benchmarks.readme_tables` writes the READMEs' tables from it. The exit code is 0 where
# every step was right. PYTHON chooses the interpreter; it must have torch with CUDA, torchvision,
# timm, pytest, hypothesis and, for two rows of bench, pycocotools; for the build pybind11, cmake,
# ninja and nvcc.
set -uo pipefail

usage="usage: benchmarks/gpu.sh OUT [build] [test] [sanitize] [bench]"
if [ $# = 0 ]; then
  echo "$usage" >&2
  exit 2
fi
out=$1
shift
steps=" ${*:-build test sanitize bench} "
for step in $steps; do
  case $step in
    build | test | sanitize | bench) ;;
    *) echo "expected build, test, sanitize or bench, got '$step'; $usage" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
# The tools that came with the interpreter's packages, and CUDA's where it is usually installed.
export PATH=$("$python" -c "import sys; print(sys.prefix)")/bin:$PATH:/usr/local/cuda/bin
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=1

gpu=$("$python" -c "import torch; print(torch.cuda.get_device_name())" 2>"$out/no_gpu.log") || {
  echo "$python sees no GPU: $(tail -n 1 "$out/no_gpu.log")" >&2
  exit 3
}
rm -f "$out/no_gpu.log"
echo "$gpu"

# ---- steps and what became of them --------------------------------------------------------------

ok=true
records=()

# record NAME EXIT_CODE SECONDS NOTE; the summary is whole after each, so that a kill leaves it so.
record() {
  records+=("{\"step\": \"$1\", \"exit_code\": $2, \"seconds\": $3, \"note\": \"$4\"}")
  [ "$2" = 0 ] || [ "$2" = null ] || ok=false
  local IFS=,
  echo "{\"gpu\": \"$gpu\", \"ok\": $ok, \"steps\": [${records[*]}]}" >"$out/summary.json"
  echo "== $1: exit code $2, $3 s${4:+, $4}"
}

# limited NAME LIMIT COMMAND...: into OUT/NAME.log, ended after LIMIT seconds.
limited() {
  local name=$1 limit=$2
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
}

note_of() { # EXIT_CODE LIMIT
  if [ "$1" = 124 ] || [ "$1" = 137 ]; then echo "ended after $2 s"; fi
}

step() { # NAME LIMIT COMMAND...
  local begin=$SECONDS code
  limited "$@"
  code=$?
  record "$1" "$code" $((SECONDS - begin)) "$(note_of "$code" "$2")"
  tail -n 5 "$out/$1.log"
  return "$code"
}

wanted() { [[ $steps == *" $1 "* ]]; }

# ---- build --------------------------------------------------------------------------------------

if wanted build; then
  # The architecture by torch and not by nvidia-smi, which a container may lack.
  arch=$("$python" -c "import torch; print(*torch.cuda.get_device_capability(), sep='')")
  FASTDET_CUDA=on FASTDET_CUDA_ARCHS=$arch \
    step build 160 "$python" setup.py build_ext --inplace || exit 1
fi
state=$("$python" -c "from fastdet.ops.library import info; print(info()['CUDA ops'])")
if [ "$state" != loaded ]; then
  record load 1 0 "the CUDA ops are not in use: ${state//\"/}"
  exit 1
fi

# ---- test and sanitize, side by side: the benchmark alone needs the GPU for itself --------------

tests=(tests/ops tests/models tests/test_override.py)
of_all_ops=(tests/ops/test_cuda.py -m cuda -p no:cacheprovider)
workers=()
"$python" -c "import xdist" 2>/dev/null && workers=(-n 6)

sanitizer=$(command -v compute-sanitizer)

# sanitized TOOL LIMIT PYTEST_ARGUMENTS...: our kernels alone are looked at; torch's take hours. Each
# tensor gets memory of its own, or a read beyond one would end in the next.
sanitized() {
  local tool=$1 limit=$2
  shift 2
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$tool" "$limit" \
    "$sanitizer" --tool "$tool" --kernel-name kns=fastdet --report-api-errors no \
    --error-exitcode 99 "$python" -m pytest "${of_all_ops[@]}" "$@"
}

# finish NAME PID LIMIT
finish() {
  wait "$2"
  local code=$? begin=$checks_begin
  if grep -qs "Device not supported" "$out/$1.log"; then
    record "$1" null 0 "skipped: compute-sanitizer says that this machine is not supported"
  else
    record "$1" "$code" $((SECONDS - begin)) "$(note_of "$code" "$3")"
  fi
  tail -n 5 "$out/$1.log"
}

checks_begin=$SECONDS
checks_limit=150
if wanted test; then
  # A line for each test (-vv, since pyproject.toml has -q): a run that is ended says how far it came.
  limited test $checks_limit \
    "$python" -m pytest -m cuda -vv --tb=short "${workers[@]}" "${tests[@]}" &
  test_pid=$!
fi
if wanted sanitize && [ -n "$sanitizer" ]; then
  sanitized memcheck $checks_limit -k "test_equals_the_cpu and not 333" &
  memcheck_pid=$!
  # Racecheck is about shared memory and slow: all operators once, in float32.
  sanitized racecheck $checks_limit -k "test_equals_the_cpu and 65 and not dtypes" &
  racecheck_pid=$!
fi
if wanted test; then finish test "$test_pid" $checks_limit; fi
if wanted sanitize && [ -n "$sanitizer" ]; then
  finish memcheck "$memcheck_pid" $checks_limit
  finish racecheck "$racecheck_pid" $checks_limit
elif wanted sanitize; then
  record sanitize null 0 "skipped: no compute-sanitizer on this machine"
fi

# ---- bench --------------------------------------------------------------------------------------

if wanted bench; then step bench 190 "$python" -m benchmarks.gpu --out "$out"; fi

$ok
