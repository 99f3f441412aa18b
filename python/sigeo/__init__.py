"""The NAS toolkit: proxies for any ``nn.Module``, search spaces, supernets, ranking.

Names are loaded when they are first used, so that ``import sigeo`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo import capture, data, proxies, scoring, spaces, store, supernet, tables
    from sigeo.scoring.many import score_many
    from sigeo.scoring.score import score

_PACKAGES = ("capture", "data", "proxies", "scoring", "spaces", "store", "supernet", "tables")
_PLACES = {"score": "sigeo.scoring", "score_many": "sigeo.scoring"}
__all__ = [
    "InputError",
    "capture",
    "data",
    "proxies",
    "score",
    "score_many",
    "scoring",
    "spaces",
    "store",
    "supernet",
    "tables",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"sigeo.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'sigeo' has no attribute {name!r}")
