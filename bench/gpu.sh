#!/usr/bin/env bash
# One call on a machine with a GPU: builds, tests, checks memory accesses, times. Under 10 minutes.
#
#   bash bench/gpu.sh [OUT]        OUT takes the log and the rows (default bench/results)
#
# Uses the torch that is there (2.10 or newer, CUDA build) and nvcc; needs no network if setuptools,
# wheel, cmake, ninja and pybind11 are there too. Leaves the card's settings alone.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-bench/results}" && cd "${1:-bench/results}" && pwd)
python=${PYTHON:-python3}
export OMP_WAIT_POLICY=passive SIGEO_CUDA=ON
exec > >(tee "$out/gpu.log") 2>&1

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step 'machine'
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
nvcc --version | tail -n 2
"$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'

step 'build'
capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
case $capability in 9.0 | 10.0) capability+=a ;; esac
TORCH_CUDA_ARCH_LIST=$capability "$python" setup.py -q build_ext --inplace
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"

step 'our static cudart beside the shared one of torch'
"$python" - <<'PY'
import pathlib

import torch
import sigeo_ext
from sigeo_ext import moments

# Served by their references on a GPU: Gram matrices of embeddings, elastic slices, statistics within
# subnets, and cells subnet by subnet, which go operation by operation there.
plain = ("gram_embedding", "gather_slice_", "gather_cell", "gather_grouped_moments")
triton = ("sample_moments_", "gather_grouped_linear", "gram_convolution")
for op, row in sigeo_ext.implementations().items():
    expected = "reference" if op.startswith(plain) else "triton" if op.startswith(triton) else "cuda"
    assert row["cuda"] == expected, (op, row)
a = torch.randn(1000, device="cuda")
assert torch.allclose(moments.dot([a], [a]), a.double().square().sum())
maps = pathlib.Path("/proc/self/maps").read_text()
libraries = sorted({line.split()[-1] for line in maps.splitlines() if "cudart" in line})
print("shared cudart in the process:", libraries or "none")
PY

step 'tests'
"$python" -m pytest -q -m 'not slow' tests/sigeo_ext tests/sigeo/test_capture*.py \
  tests/sigeo/test_proxies.py tests/sigeo/test_rank.py tests/sigeo/test_many.py

step 'memory accesses'
if command -v compute-sanitizer > /dev/null; then
  compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -m 'not slow' -p no:cacheprovider \
    tests/sigeo_ext/test_moments.py tests/sigeo_ext/test_saliency.py \
    tests/sigeo_ext/test_gather.py tests/sigeo_ext/test_gather_op.py \
    tests/sigeo_ext/test_gram.py -k 'cuda and (equal or folded or absent or hamming)'
  compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -p no:cacheprovider \
    tests/sigeo_ext/test_sample_moments_triton.py -k 'convolution_equals_reference or embedding or rows or asked'
else
  echo 'compute-sanitizer is not here: left out'
fi

step 'timings'
"$python" bench/run.py --only moments
"$python" bench/run.py --only saliency
"$python" bench/run.py --only sample_moments
"$python" bench/run.py --only many
"$python" bench/run.py --only gram
for rows in bench/results/*.jsonl; do
  if [ "$rows" -nt setup.py ] && [ ! "$rows" -ef "$out/$(basename "$rows")" ]; then cp "$rows" "$out"; fi
done

step 'done'
