"""Finds and loads the compiled kernels, and says which implementation serves which op."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sigeo_ext import _op

CHOICES = ("auto", "reference", "cpu", "cuda", "triton")

# Raised together with csrc/common/version.cpp whenever a schema changes, so that a library left
# over from an older build is refused instead of called with the wrong arguments.
_SCHEMA_VERSION = 11
_LIBRARY = Path(__file__).with_name("_C.so")


def _load() -> str:
    choice = os.environ.get("SIGEO_EXT_IMPL", "auto")
    if choice not in CHOICES:
        raise ValueError(f"SIGEO_EXT_IMPL must be one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "reference" or (choice in ("auto", "triton") and not _LIBRARY.exists()):
        return choice
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
    return choice


def complete() -> None:
    """Let Triton serve where it should, and check that the choice is met; once all ops are defined.

    Raises:
        ImportError: It is not met; the message names what is missing.
    """
    if _choice in ("cuda", "triton") and not torch.cuda.is_available():
        raise ImportError(f"SIGEO_EXT_IMPL={_choice} needs a CUDA device, torch finds none")
    if _choice == "triton" and not _op.has_triton():
        raise ImportError("SIGEO_EXT_IMPL=triton needs the package triton, found none")
    if _choice in ("auto", "cuda", "triton") and _op.has_triton():
        _op.register_triton(instead_of_compiled=_choice == "triton")
    if _choice in ("cpu", "cuda"):
        for op in _op.names():
            if _op.implementation(op, _choice) == "reference":
                raise ImportError(f"SIGEO_EXT_IMPL={_choice}: {op} has no such kernel here")


_choice = _load()


def implementations() -> dict[str, dict[str, str]]:
    """Which implementation serves each op on each kind of device.

    Returns:
        ``{op: {"cpu": name, "cuda": name}}``; a name is "reference" (plain PyTorch), "cpu" or
        "cuda" (compiled) or "triton".
    """
    return {
        op: {device: _op.implementation(op, device) for device in ("cpu", "cuda")}
        for op in _op.names()
    }
