"""Finds and loads the compiled kernels, and says which implementation serves which op."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sigeo_ext import _op

CHOICES = ("auto", "reference", "cpu", "cuda", "triton")

# Raised together with csrc/common/version.cpp whenever a schema changes, so that a library left
# over from an older build is refused instead of called with the wrong arguments.
_SCHEMA_VERSION = 7
_LIBRARY = Path(__file__).with_name("_C.so")


def _load() -> str:
    choice = os.environ.get("SIGEO_EXT_IMPL", "auto")
    if choice not in CHOICES:
        raise ValueError(f"SIGEO_EXT_IMPL must be one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "reference" or (choice == "auto" and not _LIBRARY.exists()):
        return "reference"
    if not _LIBRARY.exists():
        raise ImportError(
            f"SIGEO_EXT_IMPL={choice} needs the compiled library {_LIBRARY}, found none"
        )
    torch.ops.load_library(_LIBRARY)
    version = torch.ops.sigeo_ext.schema_version()
    if version != _SCHEMA_VERSION:
        raise ImportError(
            f"{_LIBRARY} was built for schema version {version}, this package has "
            f"{_SCHEMA_VERSION}: build it again (pip install --no-build-isolation -e .)"
        )
    if choice == "cuda" and not torch.cuda.is_available():
        raise ImportError("SIGEO_EXT_IMPL=cuda needs a CUDA device, torch finds none")
    return choice


def check_choice() -> None:
    """Check that the implementation asked for serves every op; called once all are defined.

    Raises:
        ImportError: It does not; the message names the first op that has none.
    """
    if _choice in ("auto", "reference"):
        return
    for op in _op.names():
        if _choice == "triton" or not _op.has_kernel(op, _choice.upper()):
            raise ImportError(f"SIGEO_EXT_IMPL={_choice}: {op} has no such kernel in this build")


_choice = _load()


def implementations() -> dict[str, dict[str, str]]:
    """Which implementation serves each op on each kind of device.

    Returns:
        ``{op: {"cpu": name, "cuda": name}}``; a name is "reference" (plain PyTorch), "cpu" or
        "cuda" (compiled) or "triton".
    """
    return {
        op: {
            device: device if _op.has_kernel(op, device.upper()) else "reference"
            for device in ("cpu", "cuda")
        }
        for op in _op.names()
    }
