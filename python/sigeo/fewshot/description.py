"""What tells the parts of a splitting apart, as JSON can hold it, for checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def description(part: Any) -> Any:
    """A part with all of its settings.

    What has a ``fingerprint`` or ``describe`` is what that says; dataclasses are their fields,
    partials their function and arguments, arrays and tensors hashes of what they hold, functions
    their names (two lambdas of one place look alike) and other objects their attributes: one whose
    attributes change as it works needs a ``describe``.

    Args:
        part: A metric, partitioner or rule, or one of their settings.
    """
    return _description(part, frozenset())


def _description(part: Any, above: frozenset[int]) -> Any:
    """As `description`; ``above`` are the ids of the objects that the part is an attribute of."""
    inner = functools.partial(_description, above=above | {id(part)})
    if part is None or isinstance(part, (bool, int, str)):
        return part
    if isinstance(part, float):
        return part if math.isfinite(part) else repr(part)
    if isinstance(part, np.generic):
        return inner(part.item())
    if id(part) in above:
        return _name(type(part))
    if isinstance(part, Mapping):
        return {str(key): inner(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [inner(value) for value in part]
    if isinstance(part, (set, frozenset)):
        return sorted(map(str, part))
    if isinstance(part, type):
        return _name(part)
    for method in ("fingerprint", "describe"):
        if hasattr(part, method):
            return inner(getattr(part, method)())
    return _object(part, inner)


def _object(part: Any, inner: functools.partial[Any]) -> Any:
    """What says nothing of itself, with what it holds."""
    kind = _name(type(part))
    if isinstance(part, (np.ndarray, Tensor)):
        return _array(part)
    if isinstance(part, functools.partial):
        return {
            "kind": kind,
            "function": inner(part.func),
            "args": inner(part.args),
            "keywords": inner(part.keywords),
        }
    if isinstance(part, MethodType):
        return {"kind": _name(part), "of": inner(part.__self__)}
    if dataclasses.is_dataclass(part):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return {"kind": kind, **{name: inner(value) for name, value in fields.items()}}
    if isinstance(part, nn.Module):
        settings = {n: v for n, v in vars(part).items() if not n.startswith("_")}
        return {"kind": repr(part), **{name: inner(value) for name, value in settings.items()}}
    if hasattr(part, "__qualname__"):
        return _name(part)
    if hasattr(part, "__dict__"):
        name = {"name": inner(getattr(part, "name", None))}
        return {"kind": kind, **name, **{n: inner(value) for n, value in vars(part).items()}}
    value = repr(part)  # where it has an address, that is another one in the next run
    return {"kind": kind} if " at 0x" in value else {"kind": kind, "value": value}


def _array(values: Any) -> dict[str, Any]:
    """Shape and type of an array or tensor, and a hash of its values."""
    if isinstance(values, Tensor):
        # As bytes: NumPy does not know every type of torch's.
        flat = values.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes()
    else:
        data = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
    return {
        "kind": _name(type(values)),
        "shape": list(values.shape),
        "dtype": str(values.dtype),
        "hash": hashlib.blake2b(data, digest_size=16).hexdigest(),
    }


def _name(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"
