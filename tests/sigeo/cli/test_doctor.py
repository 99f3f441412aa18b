"""What ``sigeo doctor`` finds."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.sigeo.cli.helpers import run, strict


def test_doctor(capsys):
    code, out, _ = run("doctor", "--json", capsys=capsys)
    document = strict(out)
    assert code == 0 and all(test["ok"] for test in document["self_test"])
    assert document["implementations"].keys() and document["versions"]["torch"]
    assert run("doctor", capsys=capsys)[0] == 0


def test_doctor_finds_a_kernel_that_is_wrong(capsys, monkeypatch):
    from sigeo_ext import moments

    monkeypatch.setattr(moments, "update_", lambda *_, **__: None)
    assert run("doctor", "--json", capsys=capsys)[0] == 1


def test_doctor_finds_a_kernel_that_fails(capsys, monkeypatch):
    from sigeo_ext import moments

    monkeypatch.setattr(moments, "update_", lambda: None)
    code, out, _ = run("doctor", "--json", capsys=capsys)
    (test,) = [test for test in strict(out)["self_test"] if test["device"] == "cpu"]
    assert code == 1 and not test["ok"] and test["problem"].startswith("TypeError: ")
    assert run("doctor", capsys=capsys)[0] == 1


def test_doctor_finds_kernels_that_do_not_load(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigeo_ext", None)  # what makes any import of it fail
    code, out, err = run("doctor", "--json", capsys=capsys)
    document = strict(out)
    assert code == 1 and err == "" and document["self_test"] == []
    assert "sigeo_ext" in document["problem"] and document["versions"]["torch"]
    code, out, err = run("doctor", capsys=capsys)
    assert code == 1 and err == "" and "WRONG" in out


@pytest.mark.slow
def test_doctor_says_which_implementation_there_is_not():
    given = [sys.executable, "-m", "sigeo", "doctor", "--json"]
    environment = {**os.environ, "SIGEO_EXT_IMPL": "fastest"}
    result = subprocess.run(given, capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and result.stderr == ""
    assert "SIGEO_EXT_IMPL must be one of" in strict(result.stdout)["problem"]


def test_version_names_the_package_and_torch(capsys):
    code, out, _ = run("--version", capsys=capsys)
    assert code == 0
    assert out == f"sigeo {version('sigeo-ext')}, torch {version('torch')}\n"
