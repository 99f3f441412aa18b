"""The NAS toolkit: proxies for any ``nn.Module``, search spaces, supernets, ranking.

Names are loaded when they are first used, so that ``import sigeo`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo import proxies, spaces
    from sigeo.scoring import score

__all__ = ["InputError", "proxies", "score", "spaces"]


def __getattr__(name: str) -> Any:
    if name in ("proxies", "spaces"):
        return importlib.import_module(f"sigeo.{name}")
    if name == "score":
        return importlib.import_module("sigeo.scoring").score
    raise AttributeError(f"module 'sigeo' has no attribute {name!r}")
