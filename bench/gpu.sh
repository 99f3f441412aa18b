#!/usr/bin/env bash
# One call on a machine with a GPU: builds, tests, times, looks for bad memory accesses. A step that
# fails or hangs costs itself alone; one that no longer fits the time is left out. The summary at the
# end tells.
#
#   bash bench/gpu.sh [OUT [SECONDS]]    OUT takes gpu.log and the rows (default bench/results),
#                                        SECONDS is the time for everything (default 570)
#
# Uses the torch that is there (2.10 or newer, CUDA build) and nvcc; needs no network if setuptools,
# wheel, cmake, ninja and pybind11 are there too. Leaves the card's settings alone. Fails if a step
# of those that ran did.
# shellcheck disable=SC2329  # functions that `step` calls
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=$(mkdir -p "${1:-bench/results}" && cd "${1:-bench/results}" && pwd) || exit
budget=${2:-570}
export PYTHON=${PYTHON:-python3} OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1 SIGEO_CUDA=ON
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
started=$(mktemp)
trap 'rm -f "$started"' EXIT

# The op tests, quick ones first; of these run those that use the GPU.
tests=(
  tests/sigeo_ext/test_moments.py
  tests/sigeo_ext/test_moments_errors.py
  tests/sigeo_ext/test_moments_memory.py
  tests/sigeo_ext/test_moments_numbers.py
  tests/sigeo_ext/test_moments_op.py
  tests/sigeo_ext/test_moments_state.py
  tests/sigeo_ext/test_saliency.py
  tests/sigeo_ext/test_saliency_op.py
  tests/sigeo_ext/test_gather.py
  tests/sigeo_ext/test_gather_cell.py
  tests/sigeo_ext/test_gather_op.py
  tests/sigeo_ext/test_gram.py
  tests/sigeo_ext/test_grouped.py
  tests/sigeo_ext/test_grouped_moments.py
  tests/sigeo_ext/test_grouped_op.py
  tests/sigeo_ext/test_load.py
  tests/sigeo_ext/test_slices.py
  tests/sigeo_ext/test_slices_lists.py
  tests/sigeo_ext/test_slices_op.py
  tests/sigeo_ext/test_slices_routes.py
  tests/sigeo/test_many.py
)
# These compile for seconds each, so they are spread over the cores.
triton_tests=(
  tests/sigeo_ext/test_sample_moments_triton.py
  tests/sigeo_ext/test_grouped_triton.py
  tests/sigeo_ext/test_slices_triton.py
  tests/sigeo_ext/test_gram_triton.py
  tests/sigeo_ext/test_tune_sample_moments.py
)
# Under compute-sanitizer: the CUDA kernels, then the Triton kernels.
checked=(
  tests/sigeo_ext/test_moments.py
  tests/sigeo_ext/test_saliency.py
  tests/sigeo_ext/test_gather.py
  tests/sigeo_ext/test_gather_op.py
  tests/sigeo_ext/test_gram.py
)
# Benchmarks with a part for the GPU, the most awaited first, each with the most seconds it may take.
timings=(
  sample_moments:60
  samples:60
  many:90
  space:240
  moments:40
  saliency:40
  elastic:60
  gram:60
)

summary=()
failed=0

# step NAME SECONDS COMMAND...: runs the command for at most so long, or for what is left if that is
# half of it at least.
step() {
  local name=$1 most=$2 left=$((budget - SECONDS)) begin=$SECONDS code=0 result=passed
  shift 2
  printf '\n== %s (%s s left)\n' "$name" "$left"
  if ((2 * left < most)); then
    echo 'left out: no time'
    summary+=("$(printf '%-28s left out, %s s left, may take %s' "$name" "$left" "$most")")
    return 0
  fi
  ((most < left)) || most=$left
  export deadline=$((EPOCHSECONDS + most))
  timeout -k 5 "$most" bash -c '"$@"' step "$@" || code=$?
  case $code in
    0) ;;
    124 | 137) result='FAILED, stopped at its time' ;;
    *) result="FAILED, exit code $code" ;;
  esac
  ((code == 0)) || failed=1
  summary+=("$(printf '%-28s %s, %s s' "$name" "$result" $((SECONDS - begin)))")
  return "$code"
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -n 2
  "$PYTHON" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
}

build() {
  local capability
  capability=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') ||
    return
  case $capability in 9.0 | 10.0) capability+=a ;; esac
  TORCH_CUDA_ARCH_LIST=$capability "$PYTHON" setup.py -q build_ext --inplace
}

# test_files SIDE_BY_SIDE WHICH FILE...: pytest -k WHICH, each file in a process of its own, since
# after a bad access on the GPU every later call of that process fails. Fails if no file has such a
# test.
test_files() {
  local side_by_side=$1 which=$2 code=0
  shift 2
  ran=$(mktemp)
  export ran
  printf '%s\n' "$@" | xargs -P "$side_by_side" -I{} bash -c 'test_file "$@"' test_file "$which" {} ||
    code=$?
  if [ ! -s "$ran" ]; then
    echo "no test has the name: $which"
    code=1
  fi
  rm -f "$ran"
  return "$code"
}

# Stops before its step is, and so takes its own processes along.
test_file() {
  local code=0 log
  log=$(timeout -k 2 $((deadline - EPOCHSECONDS - 4)) "$PYTHON" -m pytest -q -p no:cacheprovider \
    ${workers:+-n "$workers"} -m 'not slow' -k "$1" "$2" 2>&1) || code=$?
  case $code in
    0)
      echo "$2: $(tail -n 1 <<< "$log")"
      echo "$2" >> "$ran"
      ;;
    5) ;; # no such test in the file
    *)
      printf '%s: exit code %s\n%s\n' "$2" "$code" "$(tail -n 60 <<< "$log")"
      return 1
      ;;
  esac
}

# Rows go to OUT after each benchmark.
keep_rows() {
  local rows
  for rows in bench/results/*.jsonl; do
    if [ "$rows" -nt "$started" ] && [ ! "$rows" -ef "$out/$(basename "$rows")" ]; then
      cp "$rows" "$out"
    fi
  done
}

export -f machine build test_files test_file

run_steps() {
  step 'machine' 30 machine
  step 'build' 240 build || return

  step 'what serves each op' 60 "$PYTHON" - << 'PY'
import pathlib

import torch
import sigeo_ext
from sigeo_ext import moments

# Served by their references on a GPU; `gather_cell`, because cells go operation by operation there,
# and convolutions on slices, because their time is the library's.
plain = (
    "gram_embedding",
    "gather_slice_convolution",
    "gather_cell",
    "gather_grouped_moments",
)
triton = (
    "sample_moments_",
    "gather_slice_",
    "gather_grouped_linear",
    "gram_convolution",
)
wrong = []
for op, row in sigeo_ext.implementations().items():
    expected = "reference" if op.startswith(plain) else "triton" if op.startswith(triton) else "cuda"
    print(f"{op:36} {row['cuda']}")
    if row["cuda"] != expected:
        wrong.append(f"{op}: {row['cuda']}, expected {expected}")
# Our static cudart beside the shared one of torch.
a = torch.randn(1000, device="cuda")
assert torch.allclose(moments.dot([a], [a]), a.double().square().sum())
maps = pathlib.Path("/proc/self/maps").read_text()
libraries = sorted({line.split()[-1] for line in maps.splitlines() if "cudart" in line})
print("shared cudart in the process:", libraries or "none")
assert not wrong, "; ".join(wrong)
PY

  local workers=''
  export workers
  step 'every op once' 90 test_files 12 'cuda and (opcheck or equal)' "${tests[@]}"
  step 'tests' 150 test_files 12 'cuda or two_devices' "${tests[@]}"
  if "$PYTHON" -c 'import xdist' 2> /dev/null; then workers=5; fi
  step 'tests of Triton kernels' 150 test_files 3 'triton or candidate_computes' "${triton_tests[@]}"

  local timing
  for timing in "${timings[@]}"; do
    step "timings: ${timing%:*}" "${timing#*:}" "$PYTHON" bench/run.py --gpu --only \
      "${timing%:*}"
    keep_rows
  done

  if command -v compute-sanitizer > /dev/null; then
    step 'memory accesses: CUDA' 120 compute-sanitizer --error-exitcode 1 "$PYTHON" -m pytest -q \
      -p no:cacheprovider -m 'not slow' "${checked[@]}" -k 'cuda and (equal or folded or absent or hamming)'
    step 'memory accesses: Triton' 120 compute-sanitizer --error-exitcode 1 "$PYTHON" -m pytest -q \
      -p no:cacheprovider "${triton_tests[0]}" \
      -k 'convolution_equals_reference or embedding or rows or asked'
    step 'memory accesses: slices' 60 compute-sanitizer --error-exitcode 1 "$PYTHON" -m pytest -q \
      -p no:cacheprovider tests/sigeo_ext/test_slices_triton.py \
      -k 'equals_the_reference or larger or does_not_have or across'
  else
    summary+=('memory accesses               left out, compute-sanitizer is not here')
  fi
}

main() {
  run_steps
  printf '\n== summary (%s s)\n' "$SECONDS"
  printf '%s\n' "${summary[@]}"
  return "$failed"
}

main 2>&1 | tee "$out/gpu.log"
exit "${PIPESTATUS[0]}"
