"""Which implementation serves, and what happens when the asked one cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

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
    error = run("import sigeo_ext", "triton").stderr
    assert "SIGEO_EXT_IMPL=triton" in error and "ImportError" in error


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
