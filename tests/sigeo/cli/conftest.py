"""A run that several tests look at, and a folder of its own for each test."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sigeo.cli import console
from tests.sigeo.cli.helpers import SMALL, strict


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def nothing_is_slow(monkeypatch):
    """However busy the machine is, verbs do not say that something takes long."""
    monkeypatch.setattr(console, "_SECONDS_OF_SILENCE", 3600.0)


@pytest.fixture(autouse=True)
def threads_as_before():
    """The option ``--threads`` is of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ranking(tmp_path_factory):
    """A finished run and its JSON."""
    folder = tmp_path_factory.mktemp("run") / "r"
    command = [
        sys.executable,
        "-m",
        "sigeo",
        "rank",
        *SMALL,
        "--archs",
        "12",
        "--json",
        "--out",
        str(folder),
    ]
    command += ["--proxy", "sigeo,zico,params"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder, strict(result.stdout)
