#!/usr/bin/env bash
# Proof with a GPU, in one command and seven minutes:
#
#   benchmarks/gpu.sh OUT [dry] [build] [test] [sanitize] [bench]
#
#   dry       tries the other steps without a GPU: the build is for FASTDET_CUDA_ARCHS (90), the tests
#             are only collected, compute-sanitizer is left out, and bench runs tiny on the CPU
#   build     the libraries, for the visible GPU alone, into the source tree; without this step those
#             that lie there are used
#   test      every test marked cuda, in four processes
#   sanitize  compute-sanitizer's memcheck and racecheck over the tests of all operators
#   bench     python -m benchmarks.gpu: every operator and whole detectors beside torchvision
#
# No step named: all. A step that fails does not stop the later ones, but for a failed build. bench
# gets the time that the steps before it left of GPU_SECONDS (420; 3600 in a dry run), and keeps each
# row that it has measured. OUT gets a log of each, summary.json, and the result file, whose place is
# benchmarks/results/; then `python -m benchmarks.readme_tables` writes the READMEs' tables from it.
# The exit code is 0 where every step was right. PYTHON chooses the interpreter; it must have torch
# with CUDA, torchvision, timm, pytest and hypothesis; for the build pybind11, cmake, ninja and nvcc.
# Rows of bench beside SciPy and pycocotools are skipped where these are not installed.
set -uo pipefail

usage="usage: benchmarks/gpu.sh OUT [dry] [build] [test] [sanitize] [bench]"
if [ $# = 0 ]; then
  echo "$usage" >&2
  exit 2
fi
out=$1
shift
steps=
dry=false
for step in "$@"; do
  case $step in
    dry) dry=true ;;
    build | test | sanitize | bench) steps+=" $step " ;;
    *) echo "expected dry, build, test, sanitize or bench, got '$step'; $usage" >&2; exit 2 ;;
  esac
done
steps=${steps:- build test sanitize bench }
python=${PYTHON:-python3}
seconds=420
if $dry; then seconds=3600; fi
seconds=${GPU_SECONDS:-$seconds}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
# The tools that came with the interpreter's packages, and CUDA's where it is usually installed.
export PATH=$("$python" -c "import sys; print(sys.prefix)")/bin:$PATH:/usr/local/cuda/bin
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=1

if $dry; then
  gpu="none: a dry run"
else
  gpu=$("$python" -c "import torch; print(torch.cuda.get_device_name())" 2>"$out/no_gpu.log") || {
    echo "$python sees no GPU: $(tail -n 1 "$out/no_gpu.log")" >&2
    echo "without one, benchmarks/gpu.sh OUT dry tries what can be tried" >&2
    exit 3
  }
  rm -f "$out/no_gpu.log"
fi
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
  limit=160
  if $dry; then
    arch=${FASTDET_CUDA_ARCHS:-90} limit=3600
  else
    arch=$("$python" -c "import torch; print(*torch.cuda.get_device_capability(), sep='')")
  fi
  FASTDET_CUDA=on FASTDET_CUDA_ARCHS=$arch \
    step build $limit "$python" native_build.py || exit 1
fi
state=$("$python" -c "from fastdet.ops.library import info; print(info()['CUDA ops'])" \
  2>"$out/load.log") || state="fastdet cannot be imported: $(tail -n 1 "$out/load.log")"
echo "CUDA ops: $state"
if [[ $state != loaded* ]]; then
  record load 1 0 "the CUDA ops are not in use: ${state//[\"\\]/}"
  exit 1
fi

# ---- test and sanitize, side by side: the benchmark alone needs the GPU for itself --------------

checks=()
pids=()
checks_begin=$SECONDS
checks_limit=110
if $dry; then checks_limit=900; fi
threads=$(($(env -u OMP_NUM_THREADS nproc) / 6))  # the six processes share the cores
((threads > 0)) || threads=1

# check NAME COMMAND...: starts it.
check() {
  limited "$1" $checks_limit env OMP_NUM_THREADS=$threads "${@:2}" &
  checks+=("$1")
  pids+=($!)
}

collect=()
if $dry; then collect=(--collect-only); fi

# A line for each test (-vv, since pyproject.toml has -q): a run that is ended says how far it came.
tests() { # NAME PYTEST_ARGUMENTS...
  check "$1" "$python" -m pytest -m cuda -vv --tb=short -p no:cacheprovider \
    "${collect[@]}" "${@:2}"
}

sanitizer=$(command -v compute-sanitizer)
if $dry; then sanitizer=; fi

# sanitized TOOL KEYWORDS: the tests of all operators. Our kernels alone are looked at;
# torch's take hours. Each tensor gets memory of its own, or a read beyond one would end in the next.
sanitized() {
  local under=()
  if [ -n "$sanitizer" ]; then
    under=("$sanitizer" --tool "$1" --kernel-name kns=fastdet --report-api-errors no
      --error-exitcode 99)
  fi
  check "$1" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${under[@]}" \
    "$python" -m pytest tests/ops/test_cuda.py -m cuda -p no:cacheprovider "${collect[@]}" -k "$2"
}

if wanted test; then
  tests test_properties tests/ops/test_cuda.py -k "not million and not beyond and not more_than"
  tests test_large tests/ops/test_cuda.py -k "million or beyond or more_than"
  tests test_operators tests/ops --ignore tests/ops/test_cuda.py
  tests test_models tests/models/test_cuda.py tests/test_override.py
fi
if wanted sanitize && { $dry || [ -n "$sanitizer" ]; }; then
  sanitized memcheck "test_equals_the_cpu and not 333"
  # Racecheck is about shared memory and slow: all operators once, in float32.
  sanitized racecheck "test_equals_the_cpu and (65 or tiles) and not dtypes"
fi
for i in "${!checks[@]}"; do
  wait "${pids[$i]}"
  code=$?
  name=${checks[$i]}
  if grep -qs "Device not supported" "$out/$name.log"; then
    record "$name" null 0 "skipped: compute-sanitizer says that this machine is not supported"
  else
    record "$name" "$code" $((SECONDS - checks_begin)) "$(note_of "$code" "$checks_limit")"
  fi
  tail -n 5 "$out/$name.log"
done
if wanted sanitize && ! $dry && [ -z "$sanitizer" ]; then
  record sanitize null 0 "skipped: no compute-sanitizer on this machine"
fi

# ---- bench --------------------------------------------------------------------------------------

if wanted bench; then
  left=$((seconds - SECONDS))
  device=(--device cuda)
  if $dry; then device=(--device cpu); fi
  step bench $((left > 60 ? left : 60)) "$python" -m benchmarks.gpu --out "$out" "${device[@]}"
fi

$ok
