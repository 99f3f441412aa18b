"""Proxies whose value a space counts for its published networks, by its own published rule."""

from __future__ import annotations

from sigeo.spaces import Cost

_FIELDS = {"params": "parameters", "flops": "flops"}

COUNTED = frozenset(_FIELDS)
"""Their names."""


def counted(cost: Cost, proxy: str) -> float:
    """The value of one of the `COUNTED` on a network of this cost."""
    return float(getattr(cost, _FIELDS[proxy]))
