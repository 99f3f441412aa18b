"""Fixtures and paths that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch starts its threads

import pytest
import torch

if not torch.cuda.is_available():  # read when Triton is imported: its kernels run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(os.environ.get("SIGEO_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that tests run on; skips the one that is not there."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def small_weights_through_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights, and few subnets, go through the ops instead of plain torch's slicing."""
    from sigeo_ext.gather import grouped, slices

    monkeypatch.setattr(grouped, "SMALL", -1)
    monkeypatch.setattr(grouped, "FEW", 0)
    monkeypatch.setattr(slices, "SMALL", -1)
    monkeypatch.setattr(slices, "SMALL_TABLE", -1)


def shared_file(name: str) -> Path:
    """A file of the data folder beside the checkout, or a skip that says which is missing."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} in the data folder beside the checkout (SIGEO_SHARED)")
    return path
