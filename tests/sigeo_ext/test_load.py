"""Which implementation serves, and what happens when the asked one cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

import sigeo_ext

TABLE = "import json, sigeo_ext; print(json.dumps(sigeo_ext.implementations()))"


def run(code: str, choice: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SIGEO_EXT_IMPL": choice}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_reference_serves_when_asked():
    table = json.loads(run(TABLE, "reference").stdout)
    assert {name for row in table.values() for name in row.values()} == {"reference"}
    assert table.keys() == sigeo_ext.implementations().keys()


def test_compiled_kernels_serve_when_asked():
    result = run(TABLE, "cpu")
    if "needs the compiled library" in result.stderr:
        pytest.skip("pure-Python install")
    assert {row["cpu"] for row in json.loads(result.stdout).values()} == {"cpu"}


def test_a_choice_that_cannot_be_met_raises():
    assert "SIGEO_EXT_IMPL must be one of" in run("import sigeo_ext", "fast").stderr
    if torch.cuda.is_available():
        pytest.skip("the other choices can be met on a machine with a GPU")
    for choice in ("cuda", "triton"):
        error = run("import sigeo_ext", choice).stderr
        assert f"ImportError: SIGEO_EXT_IMPL={choice} needs" in error


def test_triton_serves_cuda_tensors_where_there_is_no_compiled_kernel():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    table = json.loads(run(TABLE, "auto").stdout)
    served = {op for op, row in table.items() if row["cuda"] == "triton"}
    families = (
        "sample_moments",
        "gather_grouped_linear",
        "gather_slice_linear",
        "gather_slice_embedding",
        "gram_convolution",
    )
    assert served == {op for op in table if op.startswith(families)}


def test_importing_the_package_does_not_import_triton():
    code = "import json, sys, sigeo_ext; print(json.dumps([*sys.modules]))"
    modules = json.loads(run(code, "auto").stdout)
    assert "sigeo_ext" in modules and "triton" not in modules


@pytest.mark.parametrize(
    "first",
    [
        "import sigeo_ext",
        "import torch.utils.flop_counter",
        "import sigeo_ext, importlib.util; importlib.util.find_spec('torch.utils.flop_counter')",
        "import sys, sigeo_ext\n"
        "sys.meta_path.insert(1, type('Old', (), {'find_module': lambda *_: None})())",
    ],
)
def test_flops_are_counted_whichever_is_imported_first(first):
    code = f"""
{first}
from torch.utils.flop_counter import FlopCounterMode
import torch, sigeo_ext.sample_moments
with FlopCounterMode(display=False) as counter:
    sigeo_ext.sample_moments.rows(torch.ones(4, 5), want=["sum"])
print(counter.get_total_flops())
"""
    assert int(run(code, "auto").stdout) == 40


@pytest.mark.slow
def test_opcheck_passes_on_the_reference_alone():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/sigeo_ext/test_moments_op.py",
        "-k",
        "opcheck or vmap",
    ]
    env = {**os.environ, "SIGEO_EXT_IMPL": "reference"}
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
