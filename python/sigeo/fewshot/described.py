"""What tells the parts of a splitting apart, as JSON can hold it, for checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import nn


def described(part: Any) -> Any:
    """A part with all of its settings.

    Dataclasses are their fields, what has a ``fingerprint`` or ``describe`` is what that says, and
    functions and other objects are their names: two lambdas of one place look alike.

    Args:
        part: A metric, partitioner or rule, or one of their settings.
    """
    if part is None or isinstance(part, (bool, int, str)):
        return part
    if isinstance(part, float):
        return part if math.isfinite(part) else repr(part)
    if isinstance(part, Mapping):
        return {str(key): described(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [described(value) for value in part]
    if isinstance(part, (set, frozenset)):
        return sorted(map(str, part))
    if isinstance(part, type):
        return _name(part)
    for method in ("fingerprint", "describe"):
        if hasattr(part, method):
            return described(getattr(part, method)())
    if dataclasses.is_dataclass(part):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return {"kind": _name(type(part)), **{n: described(value) for n, value in fields.items()}}
    if isinstance(part, nn.Module):
        settings = {n: v for n, v in vars(part).items() if not n.startswith("_")}
        return {"kind": repr(part), **{name: described(value) for name, value in settings.items()}}
    if hasattr(part, "__qualname__"):
        return _name(part)
    return {"kind": _name(type(part)), "name": described(getattr(part, "name", None))}


def _name(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"
